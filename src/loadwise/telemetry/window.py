"""What was seen of recent answers: a sliding window of bounded length in time and number."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from loadwise.decision.facts import Ending, Outcome, ServiceReading
from loadwise.decision.fault import Fault, fault_of

NS_PER_S: Final = 1e9


class _Ended(NamedTuple):
    replica_id: str
    finished_s: float
    # Whole nanoseconds, so that sums do not drift as answers come and go.
    latency_ns: int | None
    failed: bool
    first_token_ns: int | None


@dataclass(slots=True)
class _Sums:
    """Of the answers in the window: how many, and the sums that means are made of."""

    answers: int = 0
    failed: int = 0
    timed: int = 0
    latency_ns: int = 0
    firsts: int = 0
    first_token_ns: int = 0

    def count(self, ended: _Ended, by: int) -> None:
        """Adds an answer (`by` 1), or takes it off again (-1)."""
        self.answers += by
        self.failed += by * ended.failed
        if ended.latency_ns is not None:
            self.timed += by
            self.latency_ns += by * ended.latency_ns
        if ended.first_token_ns is not None:
            self.firsts += by
            self.first_token_ns += by * ended.first_token_ns

    def add(self, other: _Sums) -> None:
        """Adds all that `other` holds."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class ServiceWindow:
    """The answers of the last `span_s` seconds, at most `size` of them. May be used from several threads."""

    def __init__(self, span_s: float = 60.0, size: int = 10_000) -> None:
        self._span_s = span_s
        self._size = size
        self._ended: deque[_Ended] = deque()
        # By replica; a reading costs as much as there are replicas, whatever they answered.
        self._sums: dict[str, _Sums] = {}
        self._started_s: float | None = None
        # A reading forgets what is too old, and where workers share metrics a thread reads too.
        self._lock = threading.Lock()

    def add(self, outcome: Outcome) -> None:
        """Keeps an answer; one that its client left or spoilt says nothing and is not kept."""
        fault = fault_of(outcome)
        if outcome.ending is Ending.ABANDONED or fault is Fault.CLIENT:
            return
        succeeded = outcome.ending is Ending.SUCCEEDED
        ended = _Ended(
            outcome.replica_id,
            outcome.finished_s,
            _ns(outcome.total_s) if succeeded else None,
            fault is Fault.MEMBER,
            _ns(outcome.time_to_first_token_s),
        )
        with self._lock:
            if self._started_s is None:
                self._started_s = outcome.finished_s - (outcome.total_s or 0.0)
            sums = self._sums.get(ended.replica_id)
            if sums is None:
                sums = self._sums[ended.replica_id] = _Sums()
            sums.count(ended, 1)
            self._ended.append(ended)
            self._trim()

    def resize(self, size: int) -> None:
        """Holds at most `size` answers from now on, the newest."""
        with self._lock:
            self._size = size
            self._trim()

    def reading(
        self, now_s: float, active_requests: int | None, of: Callable[[str], bool] | None = None
    ) -> ServiceReading:
        """Averages over the window, of all answers or those of replicas that `of` takes.

        None where nothing was seen.
        """
        with self._lock:
            while self._ended and self._ended[0].finished_s < now_s - self._span_s:
                self._forget()
            whole = _Sums()
            for replica_id, sums in self._sums.items():
                if of is None or of(replica_id):
                    whole.add(sums)
            rate = self._rate(now_s, whole.answers)
        latency_s = _mean_s(whole.latency_ns, whole.timed)
        return ServiceReading(
            read_s=now_s,
            active_requests=active_requests,
            requests_per_s=rate,
            avg_latency_ms=None if latency_s is None else 1000.0 * latency_s,
            error_fraction=whole.failed / whole.answers if whole.answers else None,
            time_to_first_token_s=_mean_s(whole.first_token_ns, whole.firsts),
        )

    def _trim(self) -> None:
        while len(self._ended) > self._size:
            self._forget()

    def _forget(self) -> None:
        """The oldest answer is gone, and with its last one the replica."""
        ended = self._ended.popleft()
        sums = self._sums[ended.replica_id]
        sums.count(ended, -1)
        if not sums.answers:
            del self._sums[ended.replica_id]

    def _rate(self, now_s: float, answers: int) -> float | None:
        if self._started_s is None:
            return None
        # A server that started just now has not had a whole window yet; a second at least.
        seconds = min(self._span_s, max(1.0, now_s - self._started_s))
        if len(self._ended) == self._size:
            seconds = min(seconds, max(1e-3, now_s - self._ended[0].finished_s))
        return answers / seconds


def _ns(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * NS_PER_S)


def _mean_s(total_ns: int, count: int) -> float | None:
    return total_ns / count / NS_PER_S if count else None
