"""Computing beside requests: one call, then rest, in which requests have the machine for themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from loadwise.errors import BuildDeclinedError
from loadwise.ports import Clock

# A call in the serving process, unlike a child, contends with the steps of requests for the interpreter.
MOST_HERE = 0.1
# How often a rest looks whether requests are still being answered.
LOOK_EVERY_S = 0.05


class Pace:
    """Computes for `share()` of the time, at most `MOST_HERE`; without rest while that is 1.0.

    `rest` lets seconds pass; it may end early.
    """

    def __init__(
        self,
        clock: Clock,
        share: Callable[[], float],
        stop: threading.Event,
        rest: Callable[[float], object] | None = None,
    ) -> None:
        self._clock = clock
        self._share = share
        self._stop = stop
        self._rest = rest or stop.wait

    def __call__(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, with a rest after each time."""

        def paced(*args: Any, **kwargs: Any) -> Any:
            started_s = self._clock.monotonic_s()
            answer = call(*args, **kwargs)
            self.rest_after(self._clock.monotonic_s() - started_s)
            return answer

        return paced

    def rest_after(self, computed_s: float) -> None:
        """This thread has rested for as long as its share asks; `BuildDeclinedError` once it was stopped."""
        rested_s = 0.0
        while not self._stop.is_set():
            share = self._share()
            left_s = _owed_s(computed_s, min(share, MOST_HERE)) - rested_s
            if share >= 1.0 or left_s <= 0.0:
                return
            self._rest(min(LOOK_EVERY_S, left_s))
            rested_s += min(LOOK_EVERY_S, left_s)
        raise BuildDeclinedError("The build was stopped.", remedy="force_recompile starts it again.")


def _owed_s(computed_s: float, share: float) -> float:
    return computed_s * (1.0 - share) / share
