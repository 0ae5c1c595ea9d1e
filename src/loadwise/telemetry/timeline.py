"""What happened in each stretch of time, at three resolutions and bounded in memory: what pages draw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from loadwise.decision.facts import Ending, Objectives, Outcome
from loadwise.decision.stages import shares
from loadwise.telemetry.prometheus import time_per_output_token_s
from loadwise.telemetry.stretches import STAGES, Answers, Stretch, Tally, Track

# A span is looked at in at least so many stretches.
STRETCHES: Final = 12
# Seconds of one stretch, and how many are kept: ten minutes, an hour, a day.
TRACKS: Final = ((2.0, 300), (15.0, 240), (300.0, 288))


class Timeline:
    """Hears each outcome, each refusal and each sample of load once. Others are not kept."""

    def __init__(self, tracks: Iterable[tuple[float, int]] = TRACKS, *, route_limit: int = 50) -> None:
        self._fine, *self._coarse = [Track(step_s, size) for step_s, size in tracks]
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
        """The finest stretch of `now_s`; one that ended before is counted in the coarser tracks.

        What comes late is counted in the stretch that is open: another is never opened again.
        """
        if self._open is not None and self._open.begin_s >= self._fine.begin_of(now_s):
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
        whole = Stretch(now_s - span_s)
        for stretch in self._parts(span_s, now_s):
            whole.merge(stretch)
        return whole

    def counts(self, span_s: float, now_s: float) -> Stretch:
        """`over` with requests and routes only: neither durations nor members."""
        whole = Stretch(now_s - span_s)
        for stretch in self._parts(span_s, now_s):
            whole.merge_counts(stretch)
        return whole

    def _parts(self, span_s: float, now_s: float) -> list[Stretch]:
        track, begin_s = self._coarsest(span_s), now_s - span_s
        parts = track.since(begin_s)
        # Coarser tracks have what ended.
        return parts if track is self._fine else [*parts, *self._fine.newest(begin_s, 1)]

    def stretches(self, span_s: float, now_s: float, most: int | None = None) -> tuple[float, list[Stretch]]:
        """The stretches' length and those of the last `span_s` seconds, at most the newest, oldest first."""
        track = self._track(span_s)
        return track.step_s, track.newest(now_s - span_s, most)

    def _coarsest(self, span_s: float) -> Track:
        """The coarsest track with at least twelve stretches in the span: fewer are merged."""
        found = [track for track in self._coarse if span_s >= STRETCHES * track.step_s]
        return found[-1] if found else self._fine

    def _track(self, span_s: float) -> Track:
        tracks = [self._fine, *self._coarse]
        for track in tracks:
            if span_s <= track.step_s * (track.stretches.maxlen or 0):
                return track
        return tracks[-1]
