"""What was seen of recent answers: a sliding window of bounded length in time and number."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from loadwise.decision.facts import Ending, Outcome, ServiceReading
from loadwise.decision.fault import Fault, fault_of


@dataclass(frozen=True, slots=True)
class _Ended:
    replica_id: str
    finished_s: float
    latency_s: float | None
    failed: bool
    first_token_s: float | None


class ServiceWindow:
    """The answers of the last `span_s` seconds, at most `size` of them."""

    def __init__(self, span_s: float = 60.0, size: int = 10_000) -> None:
        self._span_s = span_s
        self._ended: deque[_Ended] = deque(maxlen=size)
        self._started_s: float | None = None

    def add(self, outcome: Outcome) -> None:
        """Keeps an answer; one that its client left or spoilt says nothing and is not kept."""
        if outcome.ending is Ending.ABANDONED or fault_of(outcome) is Fault.CLIENT:
            return
        if self._started_s is None:
            self._started_s = outcome.finished_s - (outcome.total_s or 0.0)
        succeeded = outcome.ending is Ending.SUCCEEDED
        self._ended.append(
            _Ended(
                outcome.replica_id,
                outcome.finished_s,
                outcome.total_s if succeeded else None,
                fault_of(outcome) is Fault.MEMBER,
                outcome.time_to_first_token_s,
            )
        )

    def resize(self, size: int) -> None:
        """Holds at most `size` answers from now on, the newest."""
        self._ended = deque(self._ended, maxlen=size)

    def reading(
        self, now_s: float, active_requests: int | None, of: Callable[[str], bool] | None = None
    ) -> ServiceReading:
        """Averages over the window, of all answers or those of replicas that `of` takes.

        None where nothing was seen.
        """
        while self._ended and self._ended[0].finished_s < now_s - self._span_s:
            self._ended.popleft()
        ended = [e for e in self._ended if of is None or of(e.replica_id)]
        latencies = [e.latency_s for e in ended if e.latency_s is not None]
        firsts = [e.first_token_s for e in ended if e.first_token_s is not None]
        latency_s = _mean(latencies)
        return ServiceReading(
            read_s=now_s,
            active_requests=active_requests,
            requests_per_s=self._rate(now_s, len(ended)),
            avg_latency_ms=None if latency_s is None else 1000.0 * latency_s,
            error_fraction=_mean([float(e.failed) for e in ended]),
            time_to_first_token_s=_mean(firsts),
        )

    def _rate(self, now_s: float, answers: int) -> float | None:
        if self._started_s is None:
            return None
        # A server that started just now has not had a whole window yet; a second at least.
        seconds = min(self._span_s, max(1.0, now_s - self._started_s))
        if len(self._ended) == self._ended.maxlen:
            seconds = min(seconds, max(1e-3, now_s - self._ended[0].finished_s))
        return answers / seconds


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
