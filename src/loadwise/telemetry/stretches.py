"""One stretch of time with what happened in it, and tracks of them: stretches of one length in a row."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Final

from loadwise.telemetry.latencies import Latencies, Mean

# In the order of `stages.Shares`.
STAGES: Final = ("gateway", "queue", "prefill", "decode")
# What a stretch keeps the distribution of.
TIMED: Final = ("first_token", "per_token", "total")


@dataclass(slots=True)
class Tally:
    """Requests of one route that objectives could judge, and how many missed each."""

    requests: int = 0
    failed: int = 0
    # Turned away before an engine was asked, beside `requests`.
    refused: int = 0
    # With a time to judge, and over the limit.
    first_timed: int = 0
    first_missed: int = 0
    token_timed: int = 0
    token_missed: int = 0

    @property
    def asked(self) -> int:
        """Those that an engine ended, and those that none got."""
        return self.requests + self.refused

    @property
    def unanswered(self) -> int:
        """Those that got an error by the server's doing, or none at all."""
        return self.failed + self.refused

    def add(self, other: Tally) -> None:
        """Counts all that `other` counted."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class Answers:
    """What one member answered."""

    requests: int = 0
    failed: int = 0
    judged: int = 0
    within: int = 0
    first_token: Latencies = field(default_factory=Latencies)

    def add(self, other: Answers) -> None:
        """Counts all that `other` counted."""
        self.requests += other.requests
        self.failed += other.failed
        self.judged += other.judged
        self.within += other.within
        self.first_token.merge(other.first_token)


@dataclass(slots=True)
class Stretch:
    """One stretch of time from `begin_s` (monotonic). Figures nobody measured stay empty."""

    begin_s: float
    requests: int = 0
    failed: int = 0
    # Turned away before an engine was asked: judged as missed, and not among `requests`.
    refused: int = 0
    judged: int = 0
    within: int = 0
    first_token: Latencies = field(default_factory=Latencies)
    per_token: Latencies = field(default_factory=Latencies)
    total: Latencies = field(default_factory=Latencies)
    # Where time went (`decision.stages`), of answers of which each could be told.
    gateway: Mean = field(default_factory=Mean)
    queue: Mean = field(default_factory=Mean)
    prefill: Mean = field(default_factory=Mean)
    decode: Mean = field(default_factory=Mean)
    members: dict[str, Answers] = field(default_factory=dict)
    routes: dict[str, Tally] = field(default_factory=dict)
    samples: int = 0
    load_samples: int = 0
    load_sum: float = 0.0
    waiting_samples: int = 0
    waiting_sum: float = 0.0
    # The newest sample's.
    strategy: str | None = None

    @property
    def load(self) -> float | None:
        """The mean load score of its samples."""
        return self.load_sum / self.load_samples if self.load_samples else None

    @property
    def waiting(self) -> float | None:
        """The mean number of requests that waited in engines."""
        return self.waiting_sum / self.waiting_samples if self.waiting_samples else None

    @property
    def revision(self) -> tuple[float, int, int, int]:
        """Another one whenever anything was counted."""
        return self.begin_s, self.requests, self.refused, self.samples

    def merge(self, other: Stretch) -> None:
        """Counts all that `other`, a later stretch, counted."""
        self.merge_counts(other)
        for name in (*TIMED, *STAGES):
            getattr(self, name).merge(getattr(other, name))
        for member, answers in other.members.items():
            self.members.setdefault(member, Answers()).add(answers)

    def merge_counts(self, other: Stretch) -> None:
        """Counts requests, routes and samples of `other`, a later stretch: neither durations nor members."""
        for name in (
            "requests", "failed", "refused", "judged", "within", "samples", "load_samples", "load_sum",
            "waiting_samples", "waiting_sum",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for route, tally in other.routes.items():
            self.routes.setdefault(route, Tally()).add(tally)
        self.strategy = other.strategy or self.strategy

    def pack(self) -> None:
        """Takes less room from now on: it has ended."""
        for name in TIMED:
            getattr(self, name).pack()
        for answers in self.members.values():
            answers.first_token.pack()


class Track:
    """Stretches of one length, oldest first; the last is still open."""

    def __init__(self, step_s: float, size: int) -> None:
        self.step_s = step_s
        self.stretches: deque[Stretch] = deque(maxlen=size)
        # Where the stretches begin and end that were added up last, and their sum.
        self._sum: tuple[float, float, Stretch] | None = None

    def begin_of(self, now_s: float) -> float:
        """When the stretch of `now_s` began."""
        return now_s - now_s % self.step_s

    def at(self, now_s: float) -> Stretch:
        """The stretch of `now_s`, begun where it is the first of it."""
        begin_s = self.begin_of(now_s)
        if not self.stretches or self.stretches[-1].begin_s < begin_s:
            if self.stretches:
                self.stretches[-1].pack()
            self.stretches.append(Stretch(begin_s))
        return self.stretches[-1]

    def newest(self, begin_s: float, most: int | None = None) -> list[Stretch]:
        """The stretches from the one that `begin_s` lies in on, at most the `most` newest, oldest first."""
        recent = takewhile(lambda found: found.begin_s + self.step_s > begin_s, reversed(self.stretches))
        return list(islice(recent, most))[::-1]

    def since(self, begin_s: float) -> list[Stretch]:
        """What was counted from `begin_s` on, with all of the stretch that this lies in, to be added up."""
        kept = self.newest(begin_s)
        return kept if len(kept) < 3 else [self._ended(kept[:-1]), kept[-1]]

    def _ended(self, stretches: list[Stretch]) -> Stretch:
        """The sum of stretches that have ended, added up anew only where they are others than before."""
        first_s, last_s = stretches[0].begin_s, stretches[-1].begin_s
        if self._sum is None or self._sum[:2] != (first_s, last_s):
            whole = Stretch(first_s)
            for stretch in stretches:
                whole.merge(stretch)
            self._sum = first_s, last_s, whole
        return self._sum[2]
