"""What every selection strategy sees of a member: the latencies it would give now, and its standing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from loadwise.decision.beliefs import FIRST_TOKEN_OVERHEAD_TOKENS, Belief, Health
from loadwise.decision.facts import Member, MemberPressure, Policy, RequestFacts, Route, StrategyName
from loadwise.decision.outcome import ramp
from loadwise.decision.strategy import Strategy

# Strain that adaptive allows: the rest is room for what arrives while an answer is made.
TARGET_STRAIN: Final = 0.6
# Decayed outcomes below which a member is measured again.
STALE_WEIGHT: Final = 3.0
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
    # Work of the pool at which the first of those in flight there would pass the target.
    room: float
    measured: bool
    in_flight: int
    # Share of its usual traffic (1 unless it is out or on its ramp), and of answers within objectives
    # at this level of load so far (1 where none was seen).
    share: float = 1.0
    met: float = 1.0
    stale: bool = False
    probe_due: bool = False


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks of a choice: weights of quality and speed (sum 1), the load, and a target strain."""

    quality: float
    speed: float
    preferred: bool
    level: int
    target: float
    # Whether queues are known; otherwise the strategy alone tells load.
    pressed: bool


def pool_of(member: Member) -> str:
    return member.replicas[0].pool_id if member.replicas else member.member_id


def pool_works(
    route: Route, beliefs: Mapping[str, Belief], pressures: Mapping[str, MemberPressure]
) -> dict[str, float]:
    """Per pool, what is in flight there: this route's requests by their cost, others' by one each."""
    works: dict[str, float] = {}
    counted: dict[str, int] = {}
    totals: dict[str, int] = {}
    for member in route.members:
        pressure = pressures.get(member.member_id)
        if pressure is None:
            continue
        pool = pool_of(member)
        works[pool] = works.get(pool, 0.0) + pressure.in_flight * beliefs[member.member_id].cost
        counted[pool] = counted.get(pool, 0) + pressure.in_flight
        totals[pool] = max(totals.get(pool, 0), pressure.pool_in_flight)
    for pool, total in totals.items():
        works[pool] += max(0, total - counted[pool])
    return works


def wish_of(request: RequestFacts, strategy: Strategy, pressures: Mapping[str, MemberPressure]) -> Wish:
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
        target=TARGET_STRAIN * (1.0 + 0.4 * (wanted - hurry)),
        pressed=bool(pressures),
    )


def views_of(
    policy: Policy,
    route: Route,
    able: Sequence[Member],
    request: RequestFacts,
    beliefs: Mapping[str, Belief],
    pressures: Mapping[str, MemberPressure],
    wish: Wish,
    now_s: float,
) -> list[View]:
    works = pool_works(route, beliefs, pressures)
    rooms = _rooms(route, beliefs, pressures, wish.target)
    prompt = request.prompt_tokens if request.prompt_tokens is not None else request.prompt_tokens_bound
    tokens = (UNKNOWN_PROMPT_TOKENS if prompt is None else prompt) + FIRST_TOKEN_OVERHEAD_TOKENS
    views = []
    for member in able:
        belief = beliefs[member.member_id]
        view = _view(route, member, belief, pressures.get(member.member_id), works, rooms, tokens)
        timed, within = belief.by_load[wish.level]
        view.met = (within + MET_PRIOR) / (timed + MET_PRIOR)
        view.stale = belief.weight < STALE_WEIGHT or _faded(policy, belief, now_s) < STALE_WEIGHT
        if belief.health is not Health.HEALTHY:
            view.share = ramp(belief, now_s)
            view.probe_due = belief.health is Health.OUT and now_s >= belief.probe_at_s
        views.append(view)
    return views


def _faded(policy: Policy, belief: Belief, now_s: float) -> float:
    faded: float = belief.weight * 0.5 ** (max(0.0, now_s - belief.updated_s) / policy.belief_half_life_s)
    return faded


def _rooms(
    route: Route, beliefs: Mapping[str, Belief], pressures: Mapping[str, MemberPressure], target: float
) -> dict[str, float]:
    """Per pool, the work at which the first member with requests in flight passes the target."""
    rooms: dict[str, float] = {}
    allowed = target * route.objectives.time_per_output_token_s
    for member in route.members:
        pressure = pressures.get(member.member_id)
        if pressure is None or pressure.in_flight <= 0:
            continue
        belief = beliefs[member.member_id]
        base, slope = belief.output_fit
        if slope > 0.0:
            pool = pool_of(member)
            room = (allowed / belief.trend - base) / slope
            if room < rooms.get(pool, float("inf")):
                rooms[pool] = room
    return rooms


def _view(
    route: Route,
    member: Member,
    belief: Belief,
    pressure: MemberPressure | None,
    works: Mapping[str, float],
    rooms: Mapping[str, float],
    tokens: float,
) -> View:
    pool = member.replicas[0].pool_id if member.replicas else member.member_id
    work = works.get(pool, 0.0) + belief.cost
    each_s = (belief.output_fit[0] + belief.output_fit[1] * work) * belief.trend
    first_s = tokens * (belief.first_fit[0] + belief.first_fit[1] * work) * belief.trend
    in_flight = 0
    if pressure is not None:
        in_flight = pressure.in_flight
        places = pressure.capacity_requests
        if places is not None and in_flight >= places:
            # One place falls free every answer's time over the places.
            waited = (in_flight - places + 1) * belief.answer_tokens * each_s / places
            first_s = max(first_s, waited + tokens * belief.first_fit[0])
    objectives = route.objectives
    return View(
        member_id=member.member_id,
        weight=member.weight,
        quality=UNKNOWN_QUALITY if belief.quality is None else belief.quality,
        reliability=1.0 - belief.recent_faults / (belief.recent + 2.0),
        strain=max(first_s / objectives.time_to_first_token_s, each_s / objectives.time_per_output_token_s),
        first_s=first_s,
        each_s=each_s,
        cost=belief.cost,
        work=work,
        room=rooms.get(pool, float("inf")),
        measured=belief.measured,
        in_flight=in_flight,
    )
