"""The views of all API server processes as one reading of the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from loadwise.decision.facts import EngineReading
from loadwise.engines.inside.totals import Scheduler, Totals, View, merged_schedulers, summed
from loadwise.ports import Clock

# A view that was not renewed for so long counts as absent.
ABSENT_AFTER_S: Final = 3.0
# Spans over which speeds and times are averaged.
RATE_SPAN_S: Final = 10.0
TIME_SPAN_S: Final = 30.0
# Stands for processes whose name another one has now.
EARLIER: Final = ""


class Views:
    """The latest view of each process; sums of processes that left stay in the whole, as in the engine's."""

    def __init__(self, clock: Clock, *, replica_id: str, capacity_requests: int | None) -> None:
        self._clock = clock
        self._replica_id = replica_id
        self._capacity = capacity_requests
        self._views: dict[str, tuple[float, View]] = {}
        # Of processes that left, one that may come back by its name.
        self._left: dict[str, Totals] = {}
        # Sums at past moments, oldest first.
        self._past: deque[tuple[float, Totals]] = deque()
        # Tokens that were counted, and when they last became more.
        self._tokens_seen = 0
        self._last_token_s: float | None = None

    def renew(self, view: View) -> None:
        """The process says how it sees the engine now."""
        now_s = self._clock.monotonic_s()
        self._back(view)
        self._views[view.process] = (now_s, view)
        totals = self.totals()
        if totals.output_tokens > self._tokens_seen:
            self._tokens_seen, self._last_token_s = totals.output_tokens, now_s
        self._remember(now_s, totals)

    def leave(self, process: str) -> None:
        """The process is no more; what it counted stays counted."""
        found = self._views.pop(process, None)
        if found is not None:
            self._left[process] = found[1].totals

    def present(self) -> list[View]:
        """Views that were renewed lately."""
        now_s = self._clock.monotonic_s()
        return [view for heard_s, view in self._views.values() if now_s - heard_s <= ABSENT_AFTER_S]

    def totals(self) -> Totals:
        """All that was ever counted; absent processes with their last sums."""
        return summed([*(view.totals for _, view in self._views.values()), *self._left.values()])

    def reading(self) -> EngineReading:
        """The engine as all present processes see it together; None where nobody says."""
        now_s = self._clock.monotonic_s()
        schedulers = list(merged_schedulers(self.present()).values())
        now = self.totals()
        rated = self._before(now_s - RATE_SPAN_S)
        timed = self._before(now_s - TIME_SPAN_S)
        return EngineReading(
            replica_id=self._replica_id,
            read_s=now_s,
            running_requests=_total(s.running_requests for s in schedulers),
            waiting_requests=_total(s.waiting_requests for s in schedulers),
            capacity_requests=self._capacity,
            kv_cache_usage_fraction=_worst(schedulers),
            prompt_tokens_per_s=_rate(rated, now_s, now.prompt_tokens, "prompt_tokens"),
            output_tokens_per_s=_rate(rated, now_s, now.output_tokens, "output_tokens"),
            last_token_s=self._last_token_s,
            time_to_first_token_s=_mean(timed, now, "first_token_s", "first_tokens"),
            time_per_output_token_s=_mean(timed, now, "per_token_s", "tokens_after_first"),
        )

    def _back(self, view: View) -> None:
        """A process that comes back brings what it counted before; another one of its name does not."""
        counted = self._left.pop(view.process, None)
        if counted is not None and not view.totals.continues(counted):
            self._left[EARLIER] = summed([self._left.get(EARLIER, Totals()), counted])

    def _remember(self, now_s: float, totals: Totals) -> None:
        if not self._past or now_s - self._past[-1][0] >= 0.5:
            self._past.append((now_s, totals))
        # One older than the span is the one to compare with.
        while len(self._past) > 1 and self._past[1][0] <= now_s - TIME_SPAN_S:
            self._past.popleft()

    def _before(self, then_s: float) -> tuple[float, Totals] | None:
        """The sums at `then_s`, or the oldest kept."""
        found = None
        for moment in self._past:
            if found is not None and moment[0] > then_s:
                break
            found = moment
        return found


def _total(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _worst(schedulers: Sequence[Scheduler]) -> float | None:
    usages = [s.kv_cache_usage_fraction for s in schedulers if s.kv_cache_usage_fraction is not None]
    return min(1.0, max(usages)) if usages else None


def _rate(before: tuple[float, Totals] | None, now_s: float, count: int, name: str) -> float | None:
    if before is None or now_s <= before[0]:
        return None
    return float(max(0, count - getattr(before[1], name))) / (now_s - before[0])


def _mean(before: tuple[float, Totals] | None, now: Totals, seconds: str, count: str) -> float | None:
    if before is None:
        return None
    counted = getattr(now, count) - getattr(before[1], count)
    spent_s = getattr(now, seconds) - getattr(before[1], seconds)
    return spent_s / counted if counted > 0 and spent_s >= 0 else None
