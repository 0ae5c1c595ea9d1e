"""What happened in each stretch of time, at three resolutions and bounded in memory: what pages draw."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from loadwise.decision.facts import Ending, Objectives, Outcome
from loadwise.decision.stages import shares
from loadwise.telemetry.latencies import Latencies
from loadwise.telemetry.prometheus import time_per_output_token_s

# In the order of `stages.Shares`.
STAGES: Final = ("gateway", "queue", "prefill", "decode")
# A span is looked at in at least so many stretches.
STRETCHES: Final = 12
# Seconds of one stretch, and how many are kept: ten minutes, an hour, a day.
TRACKS: Final = ((2.0, 300), (15.0, 240), (300.0, 288))


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
    gateway: Latencies = field(default_factory=Latencies)
    queue: Latencies = field(default_factory=Latencies)
    prefill: Latencies = field(default_factory=Latencies)
    decode: Latencies = field(default_factory=Latencies)
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

    def merge(self, other: Stretch) -> None:
        """Counts all that `other`, a later stretch, counted."""
        for name in (
            "requests", "failed", "refused", "judged", "within", "samples", "load_samples", "load_sum",
            "waiting_samples", "waiting_sum",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("first_token", "per_token", "total", *STAGES):
            getattr(self, name).merge(getattr(other, name))
        for member, answers in other.members.items():
            self.members.setdefault(member, Answers()).add(answers)
        for route, tally in other.routes.items():
            self.routes.setdefault(route, Tally()).add(tally)
        self.strategy = other.strategy or self.strategy


class _Track:
    """Stretches of one length, oldest first; the last is still open."""

    def __init__(self, step_s: float, size: int) -> None:
        self.step_s = step_s
        self.stretches: deque[Stretch] = deque(maxlen=size)

    def begin_of(self, now_s: float) -> float:
        return now_s - now_s % self.step_s

    def at(self, now_s: float) -> Stretch:
        """The stretch of `now_s`, begun where it is the first of it."""
        begin_s = self.begin_of(now_s)
        if not self.stretches or self.stretches[-1].begin_s < begin_s:
            self.stretches.append(Stretch(begin_s))
        return self.stretches[-1]


class Timeline:
    """Hears each outcome, each refusal and each sample of load once. Others are not kept."""

    def __init__(self, tracks: Iterable[tuple[float, int]] = TRACKS, *, route_limit: int = 50) -> None:
        self._fine, *self._coarse = [_Track(step_s, size) for step_s, size in tracks]
        self._open: Stretch | None = None
        self._route_limit = route_limit
        self._routes: set[str] = set()

    def ended(
        self,
        outcome: Outcome,
        *,
        within: bool | None,
        failed: bool,
        objectives: Objectives,
        now_s: float,
    ) -> None:
        """Counts how a request ended; one whose client left says nothing and is not counted.

        `failed` means by the server's doing; `within` is None where objectives cannot judge it.
        """
        if outcome.ending is Ending.ABANDONED:
            return
        stretch = self._at(now_s)
        stretch.requests += 1
        answers = stretch.members.get(outcome.member_id)
        if answers is None:
            answers = stretch.members[outcome.member_id] = Answers()
        answers.requests += 1
        answers.failed += failed
        if outcome.time_to_first_token_s is not None:
            answers.first_token.add(outcome.time_to_first_token_s)
        if within is not None:
            stretch.judged += 1
            stretch.within += within
            answers.judged += 1
            answers.within += within
        tally = self._tally(stretch, outcome.route)
        tally.requests += 1
        stretch.failed += failed
        tally.failed += failed
        if outcome.ending is Ending.SUCCEEDED:
            self._timed(stretch, tally, outcome, objectives)

    def _timed(self, stretch: Stretch, tally: Tally, outcome: Outcome, objectives: Objectives) -> None:
        first_s, token_s = outcome.time_to_first_token_s, time_per_output_token_s(outcome)
        for name, seconds in zip(STAGES, shares(outcome), strict=True):
            if seconds is not None:
                getattr(stretch, name).add(seconds)
        if outcome.total_s is not None:
            stretch.total.add(outcome.total_s)
        if first_s is not None:
            stretch.first_token.add(first_s)
            tally.first_timed += 1
            tally.first_missed += first_s > objectives.time_to_first_token_s
        if token_s is not None:
            stretch.per_token.add(token_s)
            tally.token_timed += 1
            tally.token_missed += token_s > objectives.time_per_output_token_s

    def refused(self, route: str, now_s: float) -> None:
        """Counts a request that was turned away by the server's doing: it missed its objectives."""
        stretch = self._at(now_s)
        stretch.refused += 1
        stretch.judged += 1
        self._tally(stretch, route).refused += 1

    def sampled(
        self, now_s: float, *, load: float | None, strategy: str | None, waiting: float | None
    ) -> None:
        """Counts one look at the load: score (0..1), strategy in force, requests that wait in engines."""
        stretch = self._at(now_s)
        stretch.samples += 1
        stretch.strategy = strategy or stretch.strategy
        if load is not None:
            stretch.load_samples += 1
            stretch.load_sum += load
        if waiting is not None:
            stretch.waiting_samples += 1
            stretch.waiting_sum += waiting

    def _at(self, now_s: float) -> Stretch:
        """The finest stretch of `now_s`; one that ended before is counted in the coarser tracks."""
        if self._open is not None and self._open.begin_s == self._fine.begin_of(now_s):
            return self._open
        if self._open is not None:
            for track in self._coarse:
                track.at(self._open.begin_s).merge(self._open)
        self._open = self._fine.at(now_s)
        return self._open

    def _tally(self, stretch: Stretch, route: str) -> Tally:
        if route not in self._routes:
            if len(self._routes) >= self._route_limit:
                route = "other"
            self._routes.add(route)
        tally = stretch.routes.get(route)
        if tally is None:
            tally = stretch.routes[route] = Tally()
        return tally

    def over(self, span_s: float, now_s: float) -> Stretch:
        """The last `span_s` seconds as one stretch, exact to a twelfth of them."""
        track = self._coarsest(span_s)
        whole = Stretch(now_s - span_s)
        for stretch in track.stretches:
            if stretch.begin_s + track.step_s > whole.begin_s:
                whole.merge(stretch)
        if track is not self._fine and self._open is not None:
            whole.merge(self._open)
        return whole

    def stretches(self, span_s: float, now_s: float) -> tuple[float, list[Stretch]]:
        """The stretches' length and those of the last `span_s` seconds, oldest first."""
        track = self._track(span_s)
        return track.step_s, [s for s in track.stretches if s.begin_s + track.step_s > now_s - span_s]

    def _coarsest(self, span_s: float) -> _Track:
        """The coarsest track with at least twelve stretches in the span: fewer are merged."""
        found = [track for track in self._coarse if span_s >= STRETCHES * track.step_s]
        return found[-1] if found else self._fine

    def _track(self, span_s: float) -> _Track:
        tracks = [self._fine, *self._coarse]
        for track in tracks:
            if span_s <= track.step_s * (track.stretches.maxlen or 0):
                return track
        return tracks[-1]
