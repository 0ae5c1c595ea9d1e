"""Who of an engine's sequences has a place, and how long each waited for it: first come, first served."""

from __future__ import annotations


class Turns:
    """Sequences by their keys, as the child admits them; times are monotonic seconds."""

    def __init__(self, places: int) -> None:
        self._places = places
        # Of those that wait, in their order, when they came.
        self._came_s: dict[int, float] = {}
        # Of those with a place, how long they waited.
        self._waited_s: dict[int, float] = {}

    def joined(self, key: int, now_s: float) -> None:
        """A sequence takes a place, or waits for one."""
        self._came_s[key] = now_s
        self._hand_out(now_s)

    def left(self, key: int, now_s: float) -> None:
        """A sequence ended or was given up; its place goes to the one that waits longest."""
        if self._waited_s.pop(key, None) is None:
            self._came_s.pop(key, None)
        self._hand_out(now_s)

    def waited_s(self, key: int) -> float | None:
        """Seconds for which a sequence with a place waited; None while it does."""
        return self._waited_s.get(key)

    def clear(self) -> None:
        """Nobody is here."""
        self._came_s.clear()
        self._waited_s.clear()

    def _hand_out(self, now_s: float) -> None:
        while self._came_s and len(self._waited_s) < self._places:
            key = next(iter(self._came_s))
            self._waited_s[key] = now_s - self._came_s.pop(key)
