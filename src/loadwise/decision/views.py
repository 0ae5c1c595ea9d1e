"""What every selection strategy sees of a member: the latencies it would give now, and its standing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from loadwise.decision.beliefs import (
    BATCH_START,
    FIRST_TOKEN_OVERHEAD_TOKENS,
    MEASURED_OUTCOMES,
    Belief,
    Health,
    pool_of,
)
from loadwise.decision.facts import Member, MemberPressure, RequestFacts, Route, StrategyName
from loadwise.decision.outcome import ramp
from loadwise.decision.strategy import Strategy

# What adaptive fills, as fractions of the objectives and of a member's places; the rest is room for what
# arrives while an answer is made. Waiting grows at once when places run out, time per token slowly.
FIRST_TOKEN_TARGET: Final = 0.5
OUTPUT_TOKEN_TARGET: Final = 0.85
PLACES_TARGET: Final = 0.75
# A cheaper member of the pool with this much of its places taken is needed for overflow: dearer ones pause.
RELIEF_TARGET: Final = 0.5
# Answers within objectives that are assumed at each level of load before any was seen.
MET_PRIOR: Final = 3.0
UNKNOWN_QUALITY: Final = 0.5
UNKNOWN_PROMPT_TOKENS: Final = 256.0
_LEVEL: Final = {StrategyName.QUALITY: 0, StrategyName.BALANCED: 1, StrategyName.PERFORMANCE: 2}


@dataclass(slots=True)
class View:
    """One candidate as every strategy sees it; made anew for each request."""

    member_id: str
    weight: float
    quality: float
    reliability: float
    # Worse of the two expected latencies over its objective, and both latencies in seconds.
    strain: float
    first_s: float
    each_s: float
    cost: float
    work: float
    # How much of what adaptive allows is used: in time to first token, time per token, places (1: all).
    fill: float
    # Whether those in flight in the pool need the device more, and whether other members share it.
    yields: bool
    shared: bool
    measured: bool
    stale: bool
    in_flight: int
    # Share of answers within objectives at this level of load so far (1 where none was seen).
    met: float
    # Share of its usual traffic: 1 unless it is out or on its ramp.
    share: float = 1.0
    probe_due: bool = False


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks of a choice: weights of quality and speed (sum 1), and the level of load."""

    quality: float
    speed: float
    preferred: bool
    level: int
    # What is allowed of the targets: 1, more for who prefers quality, less for who is in a hurry.
    target: float
    # Whether queues are known; otherwise the strategy alone tells load.
    pressed: bool


@dataclass(slots=True)
class Pool:
    """What is in flight on one device, and what that leaves room for."""

    members: int = 0
    # Requests in flight, this route's weighed by their cost and others' by one each.
    work: float = 0.0
    counted: int = 0
    total: int = 0
    # Work at which the first member with requests in flight would pass its target.
    room: float = inf
    # Cost of the cheapest member whose places fill up.
    pressed_cost: float = inf
    # Recent answers, and those outside their objectives.
    recent: float = 0.0
    misses: float = 0.0

    # How much of the targets recent misses leave: 1 below 1 %, three tenths from 15 % on.
    care: float = 1.0


def pools_of(
    route: Route, beliefs: Mapping[str, Belief], pressures: Mapping[str, MemberPressure], target: float = 1.0
) -> dict[str, Pool]:
    """The pools of a route's members as they are now, by pool id."""
    pools: dict[str, Pool] = {}
    allowed_s = target * OUTPUT_TOKEN_TARGET * route.objectives.time_per_output_token_s
    for member in route.members:
        name = pool_of(member)
        pool = pools.get(name)
        if pool is None:
            pool = pools[name] = Pool()
        belief = beliefs[member.member_id]
        pool.members += 1
        pool.recent += belief.recent
        pool.misses += belief.recent_misses
        pressure = pressures.get(member.member_id)
        if pressure is not None and pressure.pool_in_flight > 0:
            if pressure.pool_in_flight > pool.total:
                pool.total = pressure.pool_in_flight
            if pressure.in_flight > 0:
                _press(pool, belief, pressure, allowed_s)
    for pool in pools.values():
        pool.work += max(0, pool.total - pool.counted)
        if pool.misses > 0.0:
            missed = pool.misses / (pool.recent + 10.0)
            pool.care = max(0.3, 1.0 - 5.0 * max(0.0, missed - 0.01))
    return pools


def _press(pool: Pool, belief: Belief, pressure: MemberPressure, allowed_s: float) -> None:
    in_flight, places = pressure.in_flight, pressure.capacity_requests
    pool.work += (in_flight + BATCH_START) * belief.cost
    pool.counted += in_flight
    base, slope = belief.output_fit
    if slope > 0.0:
        room = (allowed_s / belief.trend - base) / slope
        if room < pool.room:
            pool.room = room
    if places is not None and in_flight >= RELIEF_TARGET * places and belief.cost < pool.pressed_cost:
        pool.pressed_cost = belief.cost


def wish_of(request: RequestFacts, strategy: Strategy, pressures: Mapping[str, MemberPressure]) -> Wish:
    """What the request and the strategy in force ask of a choice."""
    quality, speed = request.quality_preference, request.speed_preference
    preferred = quality is not None or speed is not None
    wanted = 0.5 if quality is None else min(1.0, max(0.0, quality))
    hurry = 0.5 if speed is None else min(1.0, max(0.0, speed))
    both = wanted + hurry
    return Wish(
        quality=wanted / both if both > 0.0 else 0.5,
        speed=hurry / both if both > 0.0 else 0.5,
        preferred=preferred,
        level=_LEVEL[strategy.name],
        target=1.0 + 0.3 * (wanted - hurry),
        pressed=bool(pressures),
    )


def views_of(
    route: Route,
    able: Sequence[Member],
    request: RequestFacts,
    beliefs: Mapping[str, Belief],
    pressures: Mapping[str, MemberPressure],
    wish: Wish,
    now_s: float,
) -> list[View]:
    """One view per member of `able`, in its order."""
    pools = pools_of(route, beliefs, pressures, wish.target)
    prompt = request.prompt_tokens if request.prompt_tokens is not None else request.prompt_tokens_bound
    tokens = (UNKNOWN_PROMPT_TOKENS if prompt is None else prompt) + FIRST_TOKEN_OVERHEAD_TOKENS
    views = []
    for member in able:
        belief = beliefs[member.member_id]
        pressure = pressures.get(member.member_id)
        view = _view(route, member, belief, pressure, pools[pool_of(member)], tokens, wish.level, now_s)
        if belief.health is not Health.HEALTHY:
            view.share = ramp(belief, now_s)
            view.probe_due = belief.health is Health.OUT and now_s >= belief.probe_at_s
        views.append(view)
    return views


def added_work(cost: float, in_flight: int) -> float:
    """What one more request adds to the work of a pool, given those in flight on its member."""
    return cost if in_flight else cost * (1.0 + BATCH_START)


def _view(
    route: Route,
    member: Member,
    belief: Belief,
    pressure: MemberPressure | None,
    pool: Pool,
    tokens: float,
    level: int,
    now_s: float,
) -> View:
    objectives, cost, trend = route.objectives, belief.cost, belief.trend
    in_flight = 0 if pressure is None else pressure.in_flight
    work = pool.work + (cost if in_flight else cost * (1.0 + BATCH_START))
    base, slope = belief.output_fit
    each_s = (base + slope * work) * trend
    base, slope = belief.first_fit
    first_s = tokens * (base + slope * work) * trend
    fill = 0.0
    places = None if pressure is None else pressure.capacity_requests
    if places:
        fill = in_flight / places / PLACES_TARGET
        if in_flight >= places:
            # A place falls free every answer's time over the places.
            waited = (in_flight - places + 1) * belief.answer_tokens * each_s / places
            first_s = max(first_s, waited + tokens * base)
    first = first_s / objectives.time_to_first_token_s
    each = each_s / objectives.time_per_output_token_s
    if first > fill * FIRST_TOKEN_TARGET:
        fill = first / FIRST_TOKEN_TARGET
    if each > fill * OUTPUT_TOKEN_TARGET:
        fill = each / OUTPUT_TOKEN_TARGET
    timed, within = belief.by_load[level]
    # Positional, in the fields' order: names would be a fifth of the cost of a decision.
    return View(
        member.member_id,
        member.weight,
        UNKNOWN_QUALITY if belief.quality is None else belief.quality,
        1.0 - belief.recent_faults / (belief.recent + 2.0),
        first if first > each else each,
        first_s,
        each_s,
        cost,
        work,
        fill / pool.care,
        cost > pool.pressed_cost or work > pool.room,
        pool.members > 1,
        belief.outcomes >= MEASURED_OUTCOMES,
        now_s >= belief.stale_at_s,
        in_flight,
        (within + MET_PRIOR) / (timed + MET_PRIOR),
    )
