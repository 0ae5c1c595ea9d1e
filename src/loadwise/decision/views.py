"""What every selection strategy sees: the latencies each candidate would give now, and its standing.

Figures are worked out when a strategy asks for them: most choices need those of two or three members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Final, NamedTuple

from loadwise.decision.beliefs import (
    BATCH_START,
    FIRST_TOKEN_OVERHEAD_TOKENS,
    MEASURED_OUTCOMES,
    UNKNOWN_PLACES,
    Belief,
    Health,
)
from loadwise.decision.capacity import busy_s
from loadwise.decision.expected import Latencies
from loadwise.decision.facts import MemberPressure, RequestFacts, StrategyName
from loadwise.decision.lineup import Lineup
from loadwise.decision.outcome import ramp
from loadwise.decision.price import answer_tokens, thrifts
from loadwise.decision.strategy import Strategy

# What adaptive fills, as fractions of the objectives and of a member's places; the rest is room for what
# arrives while an answer is made. Waiting grows at once when places run out, time per token slowly.
FIRST_TOKEN_TARGET: Final = 0.5
OUTPUT_TOKEN_TARGET: Final = 0.7
PLACES_TARGET: Final = 0.75
# A cheaper member of the pool with this much of its places taken is needed for overflow: dearer ones pause.
RELIEF_TARGET: Final = 0.5
# Answers within objectives that are assumed at each level of load before any was seen.
MET_PRIOR: Final = 3.0
# What the first request on an idle member weighs: its batch begins to run.
STARTING: Final = 1.0 + BATCH_START
UNKNOWN_PROMPT_TOKENS: Final = 256.0
_LEVEL: Final = {StrategyName.QUALITY: 0, StrategyName.BALANCED: 1, StrategyName.PERFORMANCE: 2}


class Wish(NamedTuple):
    """What a request asks of a choice: weights of quality and speed (sum 1), and the level of load."""

    quality: float
    speed: float
    preferred: bool
    level: int
    # What is allowed of the targets: 1, more for who prefers quality, less for who is in a hurry.
    target: float
    # Whether queues are known; otherwise the strategy alone tells load.
    pressed: bool


# By level of load, and whether queues are known.
_NO_WISHES: Final = {
    (name, pressed): Wish(0.5, 0.5, False, level, 1.0, pressed)
    for name, level in _LEVEL.items()
    for pressed in (False, True)
}


def wish_of(request: RequestFacts, strategy: Strategy, pressures: Mapping[str, MemberPressure]) -> Wish:
    """What the request and the strategy in force ask of a choice."""
    quality, speed = request.quality_preference, request.speed_preference
    if quality is None and speed is None:
        return _NO_WISHES[strategy.name, bool(pressures)]
    wanted = 0.5 if quality is None else min(1.0, max(0.0, quality))
    hurry = 0.5 if speed is None else min(1.0, max(0.0, speed))
    both = wanted + hurry
    return Wish(
        quality=wanted / both if both > 0.0 else 0.5,
        speed=hurry / both if both > 0.0 else 0.5,
        preferred=True,
        level=_LEVEL[strategy.name],
        target=1.0 + 0.3 * (wanted - hurry),
        pressed=bool(pressures),
    )


NO_WISH: Final = _NO_WISHES[StrategyName.BALANCED, True]


def works_of(
    lineup: Lineup, beliefs: Mapping[str, Belief], pressures: Mapping[str, MemberPressure]
) -> dict[str, float]:
    """Work per pool: requests in flight, this route's weighed by their cost and others' by one each."""
    works: dict[str, float] = {}
    for pool, ids in lineup.ids_by_pool.items():
        work, ours, others = 0.0, 0, 0
        for member_id in ids:
            pressure = pressures.get(member_id)
            if pressure is None:
                continue
            # Every member of a pool says the same of it.
            others, in_flight = pressure.pool_in_flight, pressure.in_flight
            if in_flight:
                places = pressure.capacity_requests
                # Who waits for a place costs the device nothing yet.
                running = in_flight if places is None or in_flight < places else places
                work += (running + BATCH_START) * beliefs[member_id].cost
                ours += in_flight
        works[pool] = work + max(0, others - ours)
    return works


class Crowd(NamedTuple):
    """What those in flight on one pool leave room for."""

    # Work at which the first member with requests in flight would pass its target.
    room: float = inf
    # Cost of the cheapest member whose places fill up.
    pressed_cost: float = inf
    # How much of the targets recent misses leave: 1 below 1 %, three tenths from 15 % on.
    care: float = 1.0


class Scene:
    """The candidates of one request as every strategy sees them, by their place in `lineup`."""

    __slots__ = (
        "_crowds",
        "_fills",
        "_first_objective_s",
        "_output_objective_s",
        "beliefs",
        "each_s",
        "first_s",
        "known",
        "leads",
        "lineup",
        "now_s",
        "panic",
        "pressed",
        "pressures",
        "request",
        "strains",
        "takes",
        "tokens",
        "wait_s",
        "whole",
        "wish",
        "works",
    )

    def __init__(
        self,
        whole: Lineup,
        lineup: Lineup,
        request: RequestFacts,
        beliefs: Mapping[str, Belief],
        pressures: Mapping[str, MemberPressure],
        wish: Wish,
        now_s: float,
        leads: frozenset[str] = frozenset(),
    ) -> None:
        """`whole` is the route's lineup, `lineup` that of the members which can answer.

        `leads` are members that lead the devices they share; empty where none is known to.
        """
        self.leads = leads
        self.whole, self.lineup, self.wish, self.now_s = whole, lineup, wish, now_s
        self.beliefs, self.pressures, self.request = beliefs, pressures, request
        self.known = list(map(beliefs.__getitem__, lineup.ids))
        self.pressed = list(map(pressures.get, lineup.ids))
        # Share of its usual traffic that each takes: 1 unless it is out or on its ramp.
        self.takes: tuple[float, ...] = lineup.everyone
        self.panic = False
        for belief in self.known:
            if belief.health is not Health.HEALTHY:
                self._limp()
                break
        objectives = whole.route.objectives
        self._first_objective_s = objectives.time_to_first_token_s
        self._output_objective_s = objectives.time_per_output_token_s
        self._crowds: dict[str, Crowd] = {}
        self._fills: dict[int, float] = {}
        prompt = request.prompt_tokens if request.prompt_tokens is not None else request.prompt_tokens_bound
        self.tokens = (UNKNOWN_PROMPT_TOKENS if prompt is None else prompt) + FIRST_TOKEN_OVERHEAD_TOKENS
        self._look(self.tokens)

    def _limp(self) -> None:
        """Ramps and removals count; with everyone out, everyone serves."""
        self.takes = tuple([ramp(belief, self.now_s) for belief in self.known])
        if not any(self.takes):
            self.takes, self.panic = self.lineup.everyone, True

    def _look(self, tokens: float) -> None:
        """The work with a prompt of `tokens` on each, its times, and strain: the worse over its objective."""
        pool_works = works_of(self.whole, self.beliefs, self.pressures)
        first_objective_s, output_objective_s = self._first_objective_s, self._output_objective_s
        works, firsts, eachs, waits, strains = [], [], [], [], []
        # One loop without calls: it runs for every member at every request.
        for belief, pressure, pool in zip(self.known, self.pressed, self.lineup.pools, strict=True):
            in_flight, places = (
                (0, None) if pressure is None else (pressure.in_flight, pressure.capacity_requests)
            )
            work = pool_works[pool] + (belief.cost if in_flight else belief.cost * STARTING)
            trend, wait_s = belief.trend, 0.0
            base, slope = belief.output_fit
            each_s = (base + slope * work) * trend
            base, slope = belief.first_fit
            first_s = tokens * (base + slope * work) * trend
            if places and in_flight >= places:
                # A place falls free every answer's time over the places.
                held_s = tokens * base * trend + belief.answer_tokens * each_s
                wait_s = (in_flight - places + 1) / places * held_s * belief.wait_trend
                first_s += wait_s
            works.append(work)
            firsts.append(first_s)
            eachs.append(each_s)
            waits.append(wait_s)
            first, each = first_s / first_objective_s, each_s / output_objective_s
            strains.append(first if first > each else each)
        self.works, self.first_s, self.each_s, self.strains = works, firsts, eachs, strains
        self.wait_s = waits

    # --- one member ---

    def expected(self, at: int) -> Latencies:
        """What the request would see there now, and would see if it were the member's only one.

        Only what was measured tells: at more work it would see at least that.
        """
        belief, trend, work = self.known[at], self.known[at].trend, self.works[at]
        alone, tokens = work - self._own_work(at), self.tokens * trend
        first = belief.first_line.told(belief.prior.first_idle_s)
        each = belief.output_line.told(belief.prior.output_idle_s)
        each_s = each.at(work) * trend
        return Latencies(
            tokens * first.at(work) + self._waiting_s(at, each_s),
            each_s,
            self.wait_s[at],
            tokens * first.at(alone),
            each.at(alone) * trend,
            alone - belief.cost * STARTING,
        )

    def _waiting_s(self, at: int, each_s: float) -> float:
        """The wait for a place, were those before it answered at `each_s` per token."""
        if not self.wait_s[at]:
            return 0.0
        belief = self.known[at]
        read_s = self.tokens * belief.first_fit.base * belief.trend
        held_s = read_s + belief.answer_tokens * self.each_s[at]
        return self.wait_s[at] * (read_s + belief.answer_tokens * each_s) / held_s if held_s > 0.0 else 0.0

    def in_flight(self, at: int) -> int:
        """Requests in flight on a member; 0 where its queue is not known."""
        pressure = self.pressed[at]
        return 0 if pressure is None else pressure.in_flight

    def _own_work(self, at: int) -> float:
        """The work of the member's requests in flight, less what the first of any costs."""
        pressure = self.pressed[at]
        if pressure is None or not pressure.in_flight:
            return 0.0
        places, in_flight = pressure.capacity_requests, pressure.in_flight
        return (in_flight if places is None or in_flight < places else places) * self.known[at].cost

    def qualities(self) -> list[float]:
        """0..1 of each; an unknown one ranks as the mean of those known, neither for it nor against it."""
        declared = [belief.quality for belief in self.known]
        known = [quality for quality in declared if quality is not None]
        if len(known) == len(declared):
            return known
        mean = sum(known) / len(known) if known else 1.0
        return [mean if quality is None else quality for quality in declared]

    def thrifts(self) -> list[float]:
        """0..1 of each by what the request is expected to cost there: 1 the cheapest."""
        prompt = self.tokens - FIRST_TOKEN_OVERHEAD_TOKENS
        return thrifts(
            [
                None
                if member.price is None
                else member.price.of(prompt, answer_tokens(self.request, belief.answer_tokens))
                for member, belief in zip(self.lineup.members, self.known, strict=True)
            ]
        )

    def priced(self, worths: list[float]) -> list[float]:
        """Worths (0..1) with thrift beside them, as much as the route says."""
        weight = self.whole.route.price_weight
        if weight <= 0.0:
            return worths
        return [
            (1.0 - weight) * worth + weight * thrift
            for worth, thrift in zip(worths, self.thrifts(), strict=True)
        ]

    def reliabilities(self) -> list[float]:
        """0..1 of each: the share of recent answers without a fault, doubtful before many were seen."""
        return [
            1.0 - belief.recent_faults / (belief.recent + 2.0) if belief.recent_faults else 1.0
            for belief in self.known
        ]

    def met(self) -> list[float]:
        """Share of each one's answers within objectives at this level of load (1 where none was seen)."""
        level = self.wish.level
        return [
            (within + MET_PRIOR) / (timed + MET_PRIOR)
            for timed, within in [belief.by_load[level] for belief in self.known]
        ]

    def measured(self, at: int) -> bool:
        """Whether enough was heard of a member to trust it with more than a small share."""
        return self.known[at].outcomes >= MEASURED_OUTCOMES

    def busy_s(self, at: int) -> float:
        """Seconds of its device that the request would take of the member at full load: what it costs."""
        pressure = self.pressed[at]
        places = None if pressure is None else pressure.capacity_requests
        return busy_s(self.known[at], places or UNKNOWN_PLACES, self.tokens - FIRST_TOKEN_OVERHEAD_TOKENS)

    def stale(self, at: int) -> bool:
        """Whether a member was not measured lately."""
        return self.now_s >= self.known[at].stale_at_s

    def probe_due(self, at: int) -> bool:
        """Whether a member that is out should be tried again."""
        belief = self.known[at]
        return belief.health is Health.OUT and self.now_s >= belief.probe_at_s and not self.panic

    # --- what adaptive asks ---

    def fill(self, at: int) -> float:
        """How much of what adaptive allows is used (1: all), with care where answers were late lately."""
        return self._filled(at) / self._crowd(self.lineup.pools[at]).care

    def _filled(self, at: int) -> float:
        """The fullest of time to first token, time per token and places, in shares of what is allowed."""
        found = self._fills.get(at)
        if found is None:
            found = self._fills[at] = self._filling(at)
        return found

    def _filling(self, at: int) -> float:
        fill = self.first_s[at] / (self._first_objective_s * FIRST_TOKEN_TARGET)
        each = self.each_s[at] / (self._output_objective_s * OUTPUT_TOKEN_TARGET)
        if each > fill:
            fill = each
        pressure = self.pressed[at]
        if pressure is not None and pressure.capacity_requests:
            taken = pressure.in_flight / pressure.capacity_requests / PLACES_TARGET
            if taken > fill:
                fill = taken
        return fill

    def has_room(self, at: int) -> bool:
        """Whether the member stays below its target, and so do those in flight beside it."""
        if self.lineup.ids[at] in self.leads:
            # Who leads was chosen for all that is asked for: it need not make way for what is left of others.
            return self._filled(at) <= self.wish.target
        crowd = self._crowd(self.lineup.pools[at])
        if self.known[at].cost > crowd.pressed_cost or self.works[at] > crowd.room:
            return False
        return self.fill(at) <= self.wish.target

    def _crowd(self, pool: str) -> Crowd:
        found = self._crowds.get(pool)
        if found is None:
            found = self._crowds[pool] = self._crowd_of(pool)
        return found

    def _crowd_of(self, pool: str) -> Crowd:
        room = pressed_cost = inf
        allowed_s = self.wish.target * OUTPUT_TOKEN_TARGET * self._output_objective_s
        members = self.whole.ids_by_pool[pool]
        for name in members:
            pressure = self.pressures.get(name)
            if pressure is None or not pressure.in_flight:
                continue
            belief = self.beliefs[name]
            base, slope = belief.output_fit
            if slope > 0.0:
                most = (allowed_s / belief.trend - base) / slope
                if most < room:
                    room = most
            places = pressure.capacity_requests
            if places is not None and pressure.in_flight >= RELIEF_TARGET * places:
                pressed_cost = min(pressed_cost, belief.cost)
        return Crowd(room, pressed_cost, _care([self.beliefs[name] for name in members]))


def _care(known: Sequence[Belief]) -> float:
    misses = sum([belief.recent_misses for belief in known])
    if misses == 0.0:
        return 1.0
    missed = misses / (sum([belief.recent for belief in known]) + 10.0)
    return max(0.3, 1.0 - 5.0 * max(0.0, missed - 0.01))
