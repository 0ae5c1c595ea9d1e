"""Time that passes only when it is told to."""

from __future__ import annotations


class VirtualClock:
    """A `Clock` for simulations and tests, starting at 0 s (monotonic) and `wall_s` (since 1970 UTC)."""

    def __init__(self, wall_s: float = 0.0) -> None:
        self._now_s = 0.0
        self._wall_s = wall_s

    def monotonic_s(self) -> float:
        """Seconds since the clock was made."""
        return self._now_s

    def wall_s(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        return self._wall_s + self._now_s

    def advance(self, seconds: float) -> None:
        """Lets `seconds` pass; never goes back, so negatives are a `ValueError`."""
        if seconds < 0.0:
            raise ValueError(f"Time cannot go back by {-seconds:g} s; give seconds of 0 or more.")
        self._now_s += seconds
