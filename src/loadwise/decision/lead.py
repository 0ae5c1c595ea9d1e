"""Which member leads a device that several share: the best one that carries what is asked for.

Engines that run side by side on one device serve less than one of them alone, so above what the best member
carries everything goes to one cheaper member, and back when demand falls.

1. Demand is a decayed mean over `MEMORY_S`, longer where few requests come; decisions wait until it differs
   by more than chance explains (one standard error of a Poisson count).
2. A member leads while demand stays below `STAYS` of its capacity; one ranked above it takes over below
   `RISES` of its own, `REST_S` after the last change at the soonest.
3. A surge is followed at the request that shows it: those in flight on the old lead end beside the new one,
   and the fewer they are, the fewer are late.
4. What is carried is also seen: where the lead refused, was late with or had no room for more than `TROUBLE`
   of the requests, it carries less than was computed. It is capped at the rest, and the cap fades. Far
   below what was computed something else is the likelier cause, and more is needed (`FAR_TROUBLE`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp, inf, sqrt
from typing import Final

from loadwise.decision.beliefs import Belief, Health
from loadwise.decision.capacity import Capacity, capacity
from loadwise.decision.choices import Choice, ChoiceReason
from loadwise.decision.strategy import Strategy
from loadwise.decision.surge import NO_LIMIT, NO_SURGE, Limit, Surge, overflows

MEMORY_S: Final = 3.0
MEMORY_REQUESTS: Final = 40.0
LONGEST_MEMORY_S: Final = 60.0
STAYS: Final = 1.0
RISES: Final = 0.85
REST_S: Final = 3.0
TROUBLE: Final = 0.05
FAR_TROUBLE: Final = 0.25
FAR: Final = 0.75
TROUBLES_NEEDED: Final = 3.0
# What a lead bears at once beyond what it carries, as a share of what it then has in flight.
SURGE_SHARE: Final = 0.3
# A cap grows by e in this time, and after so many of them bounds nothing.
CAP_FADES_S: Final = 300.0
CAP_TIMES: Final = 20.0
UNKNOWN_PROMPT_TOKENS: Final = 256.0
_BY_LOAD: Final = frozenset({ChoiceReason.ADAPTIVE_LOW_LOAD, ChoiceReason.ADAPTIVE_HIGH_LOAD})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Requests for a route since its start, their prompt tokens, and by member those that troubled it."""

    requests: int = 0
    prompt_tokens: float = 0.0
    troubled: Mapping[str, int] = field(default_factory=dict)
    surge: Surge = NO_SURGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Members of one route that share one device, with their places (None: unknown)."""

    route: str
    pool_id: str
    places: Mapping[str, int | None]
    default_member: str | None = None
    asked: Asked = field(default_factory=Asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeadState:
    """What one crew's choice remembers; sums are decayed."""

    member_id: str | None = None
    since_s: float = 0.0
    seen_s: float | None = None
    asked: Asked = field(default_factory=Asked)
    seconds: float = 0.0
    requests: float = 0.0
    prompt_tokens: float = 0.0
    # Requests per second since the time before: what troubles a lead right after a step.
    latest_per_s: float = 0.0
    # Of the requests that the lead had.
    troubled: float = 0.0
    # Per member: the demand that it was seen to carry and no more, and when.
    caps: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    # What the lead bears before it must be looked at again; without end where no other carries more.
    limit: Limit = NO_LIMIT

    @property
    def demand_per_s(self) -> float:
        """Requests per second, lately."""
        return self.requests / self.seconds if self.seconds > 0.0 else 0.0

    @property
    def doubt_per_s(self) -> float:
        """The standard error of the demand."""
        return sqrt(max(1.0, self.requests)) / self.seconds if self.seconds > 0.0 else inf


def lead(state: LeadState, crew: Crew, beliefs: Mapping[str, Belief], now_s: float) -> LeadState:
    """The state with `member_id` leading from now on; None while nothing was asked for."""
    seen = _observed(state, crew.asked, now_s)
    ranked = _ranked(crew, beliefs)
    if seen.requests <= 0.0 or not ranked:
        return seen
    found = {name: _carried(seen, crew, beliefs[name], now_s) for name in ranked}
    surged = overflows(crew.asked.surge, seen.limit)
    if surged:
        seen = _surged(seen, crew.asked.surge, now_s)
    after = _decided(seen, ranked, {name: each.per_s for name, each in found.items()}, now_s, surged=surged)
    since_s = now_s if surged else max(after.since_s, seen.limit.since_s)
    return replace(after, limit=_limit(after, found, since_s))


def _decided(
    seen: LeadState, ranked: Sequence[str], carried: Mapping[str, float], now_s: float, *, surged: bool
) -> LeadState:
    if surged or seen.member_id not in carried:
        return _led(seen, _best(ranked, carried, seen.demand_per_s), now_s)
    held = str(seen.member_id)
    if _troubled(seen, carried[held]):
        return _relieved(seen, held, ranked, carried, now_s)
    if seen.demand_per_s - seen.doubt_per_s > STAYS * carried[held]:
        return _led(seen, _best(ranked, carried, seen.demand_per_s), now_s)
    if now_s - seen.since_s < REST_S:
        return seen
    above = ranked[: ranked.index(held)]
    risen = next((n for n in above if seen.demand_per_s + seen.doubt_per_s <= RISES * carried[n]), held)
    return _led(seen, risen, now_s)


def overflowed(choice: Choice, strategy: Strategy | None, route: str) -> frozenset[str]:
    """The leads that had no room for a request which adaptive gave to another member."""
    leads = frozenset[str]() if strategy is None else strategy.leads.get(route, frozenset())
    overflow = choice.reason in _BY_LOAD and choice.member_id not in leads
    return leads if overflow else frozenset()


def _observed(state: LeadState, asked: Asked, now_s: float) -> LeadState:
    """The sums with what was asked for since the last time, and the past faded."""
    if state.seen_s is None:
        return replace(state, seen_s=now_s, asked=asked)
    elapsed = max(0.0, now_s - state.seen_s)
    few = MEMORY_REQUESTS / state.demand_per_s if state.requests > 0.0 else LONGEST_MEMORY_S
    kept = exp(-elapsed / min(LONGEST_MEMORY_S, max(MEMORY_S, few)))
    before = state.asked
    return replace(
        state,
        seen_s=now_s,
        asked=asked,
        seconds=state.seconds * kept + elapsed,
        requests=state.requests * kept + asked.requests - before.requests,
        latest_per_s=(asked.requests - before.requests) / elapsed if elapsed > 0.0 else state.latest_per_s,
        prompt_tokens=state.prompt_tokens * kept + asked.prompt_tokens - before.prompt_tokens,
        troubled=state.troubled * kept + _troubles(asked, state) - _troubles(before, state),
    )


def _surged(state: LeadState, surge: Surge, now_s: float) -> LeadState:
    """The sums begin where the surge did."""
    seconds = max(now_s - surge.since_s, surge.requests / (4.0 * state.limit.per_s))
    tokens = state.prompt_tokens / state.requests * surge.requests
    return replace(state, seconds=seconds, requests=float(surge.requests), prompt_tokens=tokens)


def _limit(state: LeadState, carried: Mapping[str, Capacity], since_s: float) -> Limit:
    own = carried[str(state.member_id)]
    if own.per_s >= max(other.per_s for other in carried.values()):
        return NO_LIMIT
    return Limit(own.per_s, max(1.0, SURGE_SHARE * own.in_flight), since_s)


def _ranked(crew: Crew, beliefs: Mapping[str, Belief]) -> list[str]:
    """Serving members, the best first; unknown quality is the mean of the known, the default leads equals."""
    serving = [name for name in crew.places if beliefs[name].health is not Health.OUT]
    known = [quality for name in serving if (quality := beliefs[name].quality) is not None]
    mean = sum(known) / len(known) if known else 1.0

    def merit(name: str) -> tuple[float, bool]:
        quality = beliefs[name].quality
        return -(mean if quality is None else quality), name != crew.default_member

    return sorted(serving, key=merit)


def _carried(state: LeadState, crew: Crew, belief: Belief, now_s: float) -> Capacity:
    """What a member carries, as computed and as seen."""
    prompt_tokens = state.prompt_tokens / state.requests if state.requests > 0.0 else UNKNOWN_PROMPT_TOKENS
    computed = capacity(belief, belief.objectives, crew.places[belief.member_id], max(0.0, prompt_tokens))
    cap, capped_s = state.caps.get(belief.member_id, (inf, now_s))
    times = (now_s - capped_s) / CAP_FADES_S
    return computed._replace(per_s=min(computed.per_s, cap * exp(times))) if times < CAP_TIMES else computed


def _best(ranked: Sequence[str], carried: Mapping[str, float], demand_per_s: float) -> str:
    """The first that carries the demand with room to spare, else the one that carries most."""
    able = [name for name in ranked if demand_per_s <= RISES * carried[name]]
    return able[0] if able else max(reversed(ranked), key=carried.__getitem__)


def _troubles(asked: Asked, state: LeadState) -> int:
    return asked.troubled.get(state.member_id or "", 0)


def _troubled(state: LeadState, carried_per_s: float) -> bool:
    near = max(state.demand_per_s, state.latest_per_s) > FAR * carried_per_s
    borne = TROUBLE if near else FAR_TROUBLE
    return state.troubled >= TROUBLES_NEEDED and state.troubled > borne * state.requests


def _relieved(
    state: LeadState, held: str, ranked: Sequence[str], carried: Mapping[str, float], now_s: float
) -> LeadState:
    """The lead is capped at the demand that troubles it, and given up where another carries more."""
    asked_per_s = max(state.demand_per_s, state.latest_per_s)
    untroubled = max(0.0, 1.0 - state.troubled / max(1.0, state.requests))
    capped = min(carried[held], asked_per_s * untroubled)
    others = [name for name in ranked if name != held]
    other = _best(others, carried, asked_per_s) if others else held
    if other == held or carried[other] <= capped:
        return state
    return _led(replace(state, caps={**state.caps, held: (capped, now_s)}), other, now_s)


def _led(state: LeadState, member_id: str, now_s: float) -> LeadState:
    if member_id == state.member_id:
        return state
    # What troubled one lead says nothing of the next.
    return replace(state, member_id=member_id, since_s=now_s, troubled=0.0)
