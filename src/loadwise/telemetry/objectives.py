"""How many requests of each route could be judged and how many missed, over any window of the last days."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import Final, NamedTuple

from loadwise.decision.burn import WINDOWS_S, Share

# Marks are this far apart: a window is exact to as much.
EVERY_S: Final = 60.0


class _Mark(NamedTuple):
    at_s: float
    judged: int
    missed: int


class ObjectiveCounts:
    """Running totals per route, with marks to look back to; memory is bounded by `keep_s` and the routes."""

    def __init__(self, *, keep_s: float = max(WINDOWS_S), every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._size = round(keep_s / every_s) + 2
        self._marks: dict[str, deque[_Mark]] = {}
        self._totals: dict[str, list[int]] = {}

    def note(self, route: str, within: bool | None, now_s: float) -> None:
        """Counts a request; None could not be judged and says nothing."""
        if within is None:
            return
        totals = self._totals.get(route)
        if totals is None:
            totals = self._totals[route] = [0, 0]
            self._marks[route] = deque(maxlen=self._size)
        marks = self._marks[route]
        if not marks or now_s - marks[-1].at_s >= self._every_s:
            marks.append(_Mark(now_s, totals[0], totals[1]))
        totals[0] += 1
        totals[1] += not within

    def over(self, route: str, span_s: float, now_s: float) -> Share:
        """Requests of the last `span_s` seconds, or of all the time there was where that is less."""
        marks, totals = self._marks.get(route), self._totals.get(route)
        if marks is None or totals is None:
            return Share(0, 0)
        since_s = now_s - span_s
        at = bisect_left(marks, since_s, key=lambda mark: mark.at_s)
        if at == len(marks) and since_s >= marks[-1].at_s + self._every_s:
            return Share(0, 0)
        mark = marks[min(at, len(marks) - 1)]
        return Share(totals[0] - mark.judged, totals[1] - mark.missed)

    def windows(self, now_s: float) -> dict[str, dict[float, Share]]:
        """Per route, the windows that burn rates are made of."""
        return {route: {span: self.over(route, span, now_s) for span in WINDOWS_S} for route in self._marks}
