"""A clock that moves only when told to."""

from __future__ import annotations


class FakeClock:
    """Time as a test wants it; starts at `monotonic_s` and `wall_s` and moves with `advance`."""

    def __init__(self, monotonic_s: float = 1_000.0, wall_s: float = 1_750_000_000.0) -> None:
        self._monotonic_s = monotonic_s
        self._wall_s = wall_s

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start."""
        return self._monotonic_s

    def wall_s(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        return self._wall_s

    def advance(self, seconds: float) -> None:
        """Moves both clocks forward; `ValueError` when asked to go back."""
        if seconds < 0:
            raise ValueError(f"A clock cannot go back by {-seconds:g} s.")
        self._monotonic_s += seconds
        self._wall_s += seconds
