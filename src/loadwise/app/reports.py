"""Where exported reports go, as settings say."""

from __future__ import annotations

from pathlib import Path

from loadwise.settings import Settings
from loadwise.telemetry.report_folder import ReportLimits


def report_dir(settings: Settings) -> Path:
    """The folder that reports are exported to."""
    return settings.report_dir or settings.state_dir / "reports"


def report_limits(settings: Settings) -> ReportLimits:
    """How much of it they may take."""
    return ReportLimits(files=settings.report_max_files, size_bytes=settings.report_max_bytes)
