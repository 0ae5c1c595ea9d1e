"""What every selection strategy sees: the latencies each candidate would give now, and its standing.

What beliefs say lies ready (`standings`); here are the queues of this moment and the request. Figures are
worked out when a strategy asks for them: most choices need those of two or three members.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from loadwise.decision.beliefs import (
    FIRST_TOKEN_OVERHEAD_TOKENS,
    MEASURED_OUTCOMES,
    UNKNOWN_PLACES,
    Belief,
    Health,
)
from loadwise.decision.capacity import busy_s
from loadwise.decision.crowds import OUTPUT_TOKEN_TARGET, Crowds
from loadwise.decision.expected import Latencies
from loadwise.decision.facts import MemberPressure, RequestFacts
from loadwise.decision.health import ramp
from loadwise.decision.lineup import Lineup
from loadwise.decision.price import answer_tokens, thrifts
from loadwise.decision.quick import new
from loadwise.decision.standings import STARTING
from loadwise.decision.wish import NO_WISH, Wish

# What adaptive fills, as fractions of the first token's objective and of a member's places. Waiting grows at
# once when places run out, time per token slowly.
FIRST_TOKEN_TARGET: Final = 0.5
PLACES_TARGET: Final = 0.75
UNKNOWN_PROMPT_TOKENS: Final = 256.0


class Look(NamedTuple):
    """What the request would meet on one member now."""

    # The work on its device with the request.
    work: float
    # Seconds to the first token with the wait for a place, seconds per further token, and that wait.
    first_s: float
    each_s: float
    wait_s: float
    # The worse of both times, in units of its objective.
    strain: float


class Scene:
    """The candidates of one request as every strategy sees them, by their place in `lineup`."""

    __slots__ = (
        "_looks",
        "crowds",
        "known",
        "leads",
        "lineup",
        "now_s",
        "panic",
        "pressed",
        "request",
        "standings",
        "takes",
        "tokens",
        "whole",
        "wish",
    )

    def __init__(
        self,
        whole: Lineup,
        lineup: Lineup,
        request: RequestFacts,
        beliefs: Mapping[str, Belief],
        pressures: Mapping[str, MemberPressure],
        wish: Wish | None,
        now_s: float,
        leads: frozenset[str] = frozenset(),
    ) -> None:
        """`whole` is the route's lineup, `lineup` that of the members which can answer.

        `leads` are members that lead the devices they share; empty where none is known to. `wish` is None
        where members are not compared.
        """
        self.whole, self.lineup, self.request, self.now_s, self.leads = whole, lineup, request, now_s, leads
        self.wish = NO_WISH if wish is None else wish
        self.standings = lineup.standings(beliefs, None if wish is None else wish.level)
        self.known = self.standings.known
        self.pressed = [pressures.get(member_id) for member_id in lineup.ids]
        if lineup is whole:
            self.crowds = Crowds(whole, self.standings, self.pressed)
        else:
            queues = [pressures.get(member_id) for member_id in whole.ids]
            self.crowds = Crowds(whole, whole.standings(beliefs, None), queues)
        # Share of its usual traffic that each takes: 1 unless it is out or on its ramp.
        self.takes: tuple[float, ...] = lineup.everyone
        self.panic = False
        if self.standings.ailing:
            self._limp()
        self.tokens = _prompt_tokens(request) + FIRST_TOKEN_OVERHEAD_TOKENS
        self._looks: dict[int, Look] = {}

    def _limp(self) -> None:
        """Ramps and removals count; with everyone out, everyone serves."""
        self.takes = tuple([ramp(belief, self.now_s) for belief in self.known])
        if not any(self.takes):
            self.takes, self.panic = self.lineup.everyone, True

    # --- one member ---

    def look(self, at: int) -> Look:
        """What the request would meet on a member now."""
        found = self._looks.get(at)
        if found is None:
            found = self._looks[at] = self._looked(at)
        return found

    def _looked(self, at: int) -> Look:
        belief, pressure = self.known[at], self.pressed[at]
        in_flight, places = (
            (0, None) if pressure is None else (pressure.in_flight, pressure.capacity_requests)
        )
        row = self.standings.rows[at]
        # The first request on an idle member starts its batch.
        work = self.crowds.work(self.lineup.pools[at]) + (row[2] if in_flight else row[3])
        tokens, trend, wait_s = self.tokens, belief.trend, 0.0
        base, slope = belief.output_fit
        each_s = (base + slope * work) * trend
        base, slope = belief.first_fit
        first_s = tokens * (base + slope * work) * trend
        if places and in_flight >= places:
            # A place falls free every answer's time over the places.
            held_s = tokens * base * trend + belief.answer_tokens * each_s
            wait_s = (in_flight - places + 1) / places * held_s * belief.wait_trend
            first_s += wait_s
        objectives = self.standings.terms.objectives
        first, each = first_s / objectives.time_to_first_token_s, each_s / objectives.time_per_output_token_s
        return new(Look, (work, first_s, each_s, wait_s, first if first > each else each))

    def expected(self, at: int) -> Latencies:
        """What the request would see there now, and would see if it were the member's only one.

        Only what was measured tells: at more work it would see at least that.
        """
        belief, look = self.known[at], self.look(at)
        trend, work, wait_s = belief.trend, look.work, look.wait_s
        alone, tokens = work - self._own_work(at), self.tokens * trend
        first_s, first_alone_s = belief.first_line.told(belief.prior.first_idle_s, work, alone)
        each_s, each_alone_s = belief.output_line.told(belief.prior.output_idle_s, work, alone)
        each_s *= trend
        first_s *= tokens
        if wait_s:
            first_s += self._waiting_s(belief, look, each_s)
        beside = alone - belief.cost * STARTING
        return new(Latencies, (first_s, each_s, wait_s, tokens * first_alone_s, each_alone_s * trend, beside))

    def _waiting_s(self, belief: Belief, look: Look, each_s: float) -> float:
        """The wait for a place, were those before it answered at `each_s` per token."""
        read_s = self.tokens * belief.first_fit.base * belief.trend
        held_s = read_s + belief.answer_tokens * look.each_s
        return look.wait_s * (read_s + belief.answer_tokens * each_s) / held_s if held_s > 0.0 else 0.0

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

    def measured(self, at: int) -> bool:
        """Whether enough was heard of a member to trust it with more than a small share."""
        return self.known[at].outcomes >= MEASURED_OUTCOMES

    def stale(self, at: int) -> bool:
        """Whether a member was not measured lately."""
        return self.now_s >= self.known[at].stale_at_s

    def probe_due(self, at: int) -> bool:
        """Whether a member that is out should be tried again."""
        belief = self.known[at]
        return belief.health is Health.OUT and self.now_s >= belief.probe_at_s and not self.panic

    # --- all of them ---

    def shares(self) -> list[tuple[float, float]]:
        """What the request would take of both objectives: the first token's, and per further token."""
        works = {pool: self.crowds.work(pool) for pool in self.lineup.by_pool}
        tokens, pressed, found = self.tokens, self.pressed, []
        for at, pool, cost, starting, first_base, first_slope, each_base, each_slope in self.standings.rows:
            pressure, work = pressed[at], works[pool]
            if pressure is None or not pressure.in_flight:
                work += starting
            else:
                work += cost
                places = pressure.capacity_requests
                if places and pressure.in_flight >= places:
                    found.append(self._share(at))
                    continue
            found.append((tokens * (first_base + first_slope * work), each_base + each_slope * work))
        return found

    def _share(self, at: int) -> tuple[float, float]:
        look, objectives = self.look(at), self.standings.terms.objectives
        return (
            look.first_s / objectives.time_to_first_token_s,
            look.each_s / objectives.time_per_output_token_s,
        )

    def strains(self) -> list[float]:
        """The worse of both shares of each."""
        return [first if first > each else each for first, each in self.shares()]

    def busy(self) -> list[float]:
        """Seconds of its device that the request would take of each at full load: what it costs."""
        prompt, pressed, found = self.tokens - FIRST_TOKEN_OVERHEAD_TOKENS, self.pressed, []
        for at, belief in enumerate(self.known):
            pressure = pressed[at]
            places = None if pressure is None else pressure.capacity_requests
            found.append(busy_s(belief, places or UNKNOWN_PLACES, prompt))
        return found

    def priced(self, worths: list[float]) -> list[float]:
        """Worths (0..1) with thrift beside them, as much as the route says."""
        weight = self.whole.route.price_weight
        if weight <= 0.0:
            return worths
        thrifts = self.thrifts()
        return [(1.0 - weight) * worth + weight * thrifts[at] for at, worth in enumerate(worths)]

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

    # --- what adaptive asks ---

    def has_room(self, at: int) -> bool:
        """Whether the member stays below its target, and so do those in flight beside it."""
        if self.lineup.ids[at] in self.leads:
            # Who leads was chosen for all that is asked for: it need not make way for what is left of others.
            return self._filled(at) <= self.wish.target
        pool = self.lineup.pools[at]
        crowd = self.crowds.crowd(pool, self.wish.target)
        if self.full(pool) or self.known[at].cost > crowd.pressed_cost:
            return False
        return self.look(at).work <= crowd.room and self._filled(at) / crowd.care <= self.wish.target

    def full(self, pool: str) -> bool:
        """Whether those in flight are too many already, so that nobody's times there need be worked out."""
        return self.crowds.work(pool) > self.crowds.crowd(pool, self.wish.target).room

    def fill(self, at: int) -> float:
        """How much of what adaptive allows is used (1: all), with care where answers were late lately."""
        return self._filled(at) / self._care(self.lineup.pools[at])

    def _care(self, pool: str) -> float:
        return self.crowds.crowd(pool, self.wish.target).care

    def _filled(self, at: int) -> float:
        first, each = self._share(at)
        return _fullest(first, each, self.pressed[at])

    def fills(self) -> list[float]:
        """How much is used of each (`fill`)."""
        cares = {pool: self._care(pool) for pool in self.lineup.by_pool}
        pressed, pools, shares = self.pressed, self.lineup.pools, self.shares()
        return [
            _fullest(first, each, pressed[at]) / cares[pools[at]] for at, (first, each) in enumerate(shares)
        ]


def _prompt_tokens(request: RequestFacts) -> float:
    prompt = request.prompt_length
    return UNKNOWN_PROMPT_TOKENS if prompt is None else prompt


def _fullest(first: float, each: float, pressure: MemberPressure | None) -> float:
    """The fullest of both objectives and the places, in shares of what adaptive allows."""
    fill, each = first / FIRST_TOKEN_TARGET, each / OUTPUT_TOKEN_TARGET
    if each > fill:
        fill = each
    if pressure is not None and pressure.capacity_requests:
        taken = pressure.in_flight / pressure.capacity_requests / PLACES_TARGET
        if taken > fill:
            fill = taken
    return fill
