"""Whether a promoted build keeps its promise: now and then a live call is answered twice and compared."""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from loadwise.compiler.examples import copied, size_bytes
from loadwise.compiler.verify import difference
from loadwise.ports import Clock, Form

# One call in so many is compared, after the first of them.
COMPARE_EVERY = 500
# A call with more bytes of arguments is too dear to copy.
COPY_BYTES = 16 * 1024**2
# Comparisons before speed is judged; their median must still be a gain.
JUDGED_AFTER, KEPT_PAIRS = 7, 21
# Of the latest calls, this share that the build cannot take is a storm of shapes that it was not made for.
RECENT_CALLS, STORM_FRACTION = 200, 0.5
NAMED_MISSES = 8


class Watch:
    """Counts calls that a build takes and misses; `compare` says what is wrong with it, or None.

    `repeatable`: calling the model twice with the same arguments leaves them as calling it once.
    """

    def __init__(self, clock: Clock, form: Form, *, repeatable: bool = False) -> None:
        self._clock = clock
        self._form = form
        self._repeatable = repeatable
        self._calls = 0
        self._recent: deque[bool] = deque(maxlen=RECENT_CALLS)
        # Seconds of the original against those of the build, on the same call.
        self._ratios: deque[float] = deque(maxlen=KEPT_PAIRS)
        self._missed_calls = 0
        self.missed: Counter[str] = Counter()

    def took(self) -> bool:
        """Counts a call of the build's; True when it should be compared."""
        self._recent.append(True)
        self._calls += 1
        return self._calls % COMPARE_EVERY == 0

    def miss(self, what: str) -> str | None:
        """Counts a call that the build cannot take; the reason to retire it when these are a storm."""
        self._recent.append(False)
        self._missed_calls += 1
        if what in self.missed or len(self.missed) < NAMED_MISSES:
            self.missed[what] += 1
        if len(self._recent) < RECENT_CALLS:
            return None
        share = self._recent.count(False) / RECENT_CALLS
        if share < STORM_FRACTION:
            return None
        return f"{share:.0%} of the last {RECENT_CALLS} calls have shapes that it was not made for ({what})."

    def compare(
        self,
        original: Callable[..., Any],
        build: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, str | None]:
        """The build's answer to a live call, and what is wrong with the build if anything is.

        A wrong build's answer is not used: then the original's is returned.
        """
        again = (args, kwargs) if self._repeatable else self._copy(args, kwargs)
        if again is None:
            return build(*args, **kwargs), None
        answer, build_s = self._timed(build, args, kwargs)
        expected, original_s = self._timed(original, *again)
        found = difference(expected, answer, form=self._form)
        if found is not None:
            return expected, f"It answered a live call wrongly ({found})."
        self._ratios.append(original_s / build_s if build_s > 0 else 1.0)
        return answer, self._slower()

    def stats(self) -> dict[str, Any]:
        """Live figures; the speed-up is None before it was compared."""
        return {
            "calls": self._calls,
            "speedup": statistics.median(self._ratios) if self._ratios else None,
            "compared": len(self._ratios),
            # What would be recompiles, if anything compiled at a call: their number, and their sizes.
            "missed_calls": self._missed_calls,
            "missed": dict(self.missed),
        }

    def _slower(self) -> str | None:
        if len(self._ratios) < JUDGED_AFTER:
            return None
        speedup = statistics.median(self._ratios)
        return None if speedup >= 1.0 else f"It became slower than the original ({speedup:.2f} of its speed)."

    def _copy(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if size_bytes((args, dict(kwargs))) > COPY_BYTES:
            return None
        return copied(args), copied(dict(kwargs))

    def _timed(self, call: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, float]:
        before_s = self._clock.monotonic_s()
        answer = call(*args, **kwargs)
        return answer, self._clock.monotonic_s() - before_s
