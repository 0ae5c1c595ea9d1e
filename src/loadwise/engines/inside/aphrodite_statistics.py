"""Aphrodite Engine's statistics plugin, loaded in the engine's process: `aphrodite.stat_logger_plugins`."""

from __future__ import annotations

from typing import Any

from aphrodite.v1.metrics.loggers import StatLoggerBase

from loadwise.engines.inside.awake import tell


class StatLogger(StatLoggerBase):  # type: ignore[misc]  # the engine is not installed where types are checked
    """Passes every record on to whoever listens; the engine makes one per engine core."""

    def __init__(self, config: Any, engine_index: int = 0) -> None:
        self.config = config
        self._core = engine_index

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int | None = None,
    ) -> None:
        """Called on the engine's event loop after every iteration."""
        tell(self._core if engine_idx is None else engine_idx, scheduler_stats, iteration_stats)

    def log_engine_initialized(self) -> None:
        """Nothing to say: the endpoint plugin tells what it found."""
