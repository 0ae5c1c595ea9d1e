"""Joins a journal to an optimizer where the settings want one."""

from __future__ import annotations

from pathlib import Path

from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer
from loadwise.settings import JournalSettings
from loadwise.telemetry.journal.journal import Journal, Limits


async def remember(wanted: JournalSettings, folder: Path, optimizer: ServerSideOptimizer) -> None:
    """Decisions are journaled in `folder` from now on, and earlier history is there, unless not wanted."""
    if not wanted.enabled:
        return
    limits = Limits(max_bytes=wanted.max_bytes, max_age_s=wanted.max_age_sec, queue_size=wanted.queue_size)
    await optimizer.chronicle.open(Journal(folder, optimizer.clock, limits))
