"""The only file that reads the time."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class SystemClock:
    """The machine's clocks: one that never jumps for durations, one for dates."""

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        return time.monotonic()

    def wall_s(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        return time.time()


def iso_utc(wall_s: float) -> str:
    """A wall-clock time as ISO 8601 in UTC with seconds, for example 2024-10-19T10:45:30Z."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
