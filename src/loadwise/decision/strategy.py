"""2 choose: performance, balanced or quality, from the load score.

Rules, in order:

1. Without a score the strategy holds; after `stale_after_s` it becomes balanced at middle load, which
   claims neither quiet nor overload. The first score, and the first after that, decides at once.
2. The level is the mean of the scores since load last moved. It moved when a short mean lies further
   from the level than noise explains (four standard errors of the noise seen so far), and not by one score
   alone: in an hour of them some lie far off.
3. A threshold is passed upward at its value and downward by `hysteresis` below it for performance, and
   mirrored for quality; both also by the level's standard error, so noise is waited out.
4. A change waits `dwell_s` after the last one. A jump (`policy.jump` or more within a second, seven
   standard deviations of the noise) skips both once in each direction until a whole dwell has passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import exp, isfinite, sqrt
from types import MappingProxyType
from typing import Any, Final

from loadwise.decision.facts import (
    PERFORMANCE_TARGET,
    QUALITY_TARGET,
    Number,
    Policy,
    Route,
    SamplingTarget,
    StrategyName,
)

# Standard errors by which a short mean must leave the level for load to have moved.
MOVED: Final = 4.0
# Standard deviations by which a single score must leave the level to be a jump: an hour has thousands
# of scores, and where load nears 1 noise is cut off above and looks smaller than it is below.
JUMPED: Final = 7.0
# Standard deviations beyond which a score says no more of noise.
FAR_OFF: Final = 2.5
# What is assumed of noise before it is seen: 10 % of the level, which counts as 3 observations.
NOISE_PRIOR: Final = 0.10
NOISE_PRIOR_WEIGHT: Final = 3.0
NOISE_FLOOR: Final = 0.005


class StrategyReason(StrEnum):
    """Why a strategy is in force."""

    FIRST = "first_observation"
    LOAD = "load"
    JUMP = "jump"
    HOLDING = "holding"
    DWELLING = "dwelling"
    UNKNOWN_LOAD = "unknown_load"
    STALE_LOAD = "stale_load"


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy(Mapping[str, Any]):
    """How a pool is run now; reads like a mapping too (`strategy["name"]`)."""

    name: StrategyName
    # max_tokens (int), temperature, top_k (int)
    parameters: Mapping[str, Number]
    compile_mode: str
    # The score that was measured; None when it could not be.
    load_score: float | None
    reason: StrategyReason
    # Per route, the members that lead the devices they share with others (`lead`).
    leads: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        if key not in KEYS:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(KEYS)

    def __len__(self) -> int:
        return len(KEYS)


KEYS: Final = ("name", "parameters", "compile_mode", "load_score", "reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyState:
    """What one pool's choice remembers between observations."""

    name: StrategyName | None = None
    changed_s: float = 0.0
    # When a score was last there, and its level: the mean, and observations in it.
    scored_s: float | None = None
    level: float = 0.0
    count: float = 0.0
    # Variance of single scores, with the squares and observations that it comes from.
    variance: float = 0.0
    squares: float = 0.0
    seen: float = 0.0
    # A short mean and the observations in it.
    short: float = 0.0
    short_count: float = 0.0
    # The score before.
    last: float = 0.0
    # A score about a second old, to see jumps by.
    anchor: float = 0.0
    anchor_s: float = 0.0
    # Jumps that skipped the dwell since a whole dwell passed.
    skipped_up: bool = False
    skipped_down: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the strategy table."""

    name: StrategyName
    # The load at which its parameters are read off: None means that they follow the level.
    load: float | None
    compile_mode: str | None


# In order of load. Balanced takes the configured compile mode.
TABLE: Final[Mapping[StrategyName, Row]] = MappingProxyType(
    {
        row.name: row
        for row in (
            Row(name=StrategyName.QUALITY, load=0.0, compile_mode=QUALITY_TARGET.compile_mode),
            Row(name=StrategyName.BALANCED, load=None, compile_mode=None),
            Row(name=StrategyName.PERFORMANCE, load=1.0, compile_mode=PERFORMANCE_TARGET.compile_mode),
        )
    }
)
_ORDER: Final = {name: place for place, name in enumerate(TABLE)}


def choose(
    policy: Policy, state: StrategyState, score: float | None, now_s: float
) -> tuple[StrategyState, Strategy]:
    """The strategy for a score in 0..1 (None: load could not be read) observed at `now_s`."""
    if score is None or not isfinite(score):
        return _without_score(policy, state, now_s)
    score = min(1.0, max(0.0, score))
    if state.name is None or state.scored_s is None:
        return _first(policy, score, now_s)
    now_s = max(now_s, state.scored_s)
    seen, jumped = _observe(policy, state, score, now_s)
    margin = 0.0 if jumped else _margin(policy, seen, now_s - state.scored_s)
    wanted = _wanted(policy, state.name, seen.level, margin)
    if wanted is state.name:
        return seen, _strategy(policy, wanted, seen.level, score, StrategyReason.HOLDING)
    return _change(policy, seen, wanted, score, now_s, jumped)


def for_route(route: Route, strategies: Mapping[str, Strategy]) -> Strategy | None:
    """The strategy of the route's most loaded pool, of those by pool id; None where none is known."""
    found = [
        strategies[replica.pool_id]
        for member in route.members
        for replica in member.replicas
        if replica.pool_id in strategies
    ]
    return max(found, key=lambda strategy: _ORDER[strategy.name], default=None)


def interpolated(policy: Policy, name: StrategyName, load: float) -> SamplingTarget:
    """The target of a strategy; balanced lies between the origin's columns by load between thresholds."""
    row = TABLE[name]
    span = policy.load_threshold_high - policy.load_threshold_low
    share = (
        row.load if row.load is not None else min(1.0, max(0.0, (load - policy.load_threshold_low) / span))
    )
    low, high = QUALITY_TARGET, PERFORMANCE_TARGET
    return SamplingTarget(
        max_tokens=round(low.max_tokens + (high.max_tokens - low.max_tokens) * share),
        temperature=round(low.temperature + (high.temperature - low.temperature) * share, 4),
        top_k=round(low.top_k + (high.top_k - low.top_k) * share),
        compile_mode=row.compile_mode or policy.compile_mode,
    )


def _strategy(
    policy: Policy, name: StrategyName, level: float, score: float | None, reason: StrategyReason
) -> Strategy:
    target = interpolated(policy, name, level)
    return Strategy(
        name=name,
        parameters={
            "max_tokens": target.max_tokens,
            "temperature": target.temperature,
            "top_k": target.top_k,
        },
        compile_mode=target.compile_mode,
        load_score=score,
        reason=reason,
    )


def _first(policy: Policy, score: float, now_s: float) -> tuple[StrategyState, Strategy]:
    name = _plain(policy, score)
    state = StrategyState(
        name=name,
        changed_s=now_s,
        scored_s=now_s,
        level=score,
        count=1.0,
        variance=_prior_variance(score),
        short=score,
        short_count=1.0,
        last=score,
        anchor=score,
        anchor_s=now_s,
    )
    return state, _strategy(policy, name, score, score, StrategyReason.FIRST)


def _without_score(policy: Policy, state: StrategyState, now_s: float) -> tuple[StrategyState, Strategy]:
    middle = (policy.load_threshold_low + policy.load_threshold_high) / 2.0
    known = state.name is not None and state.scored_s is not None
    if known and now_s - (state.scored_s or 0.0) <= policy.stale_after_s:
        name = state.name or StrategyName.BALANCED
        return state, _strategy(policy, name, state.level, None, StrategyReason.UNKNOWN_LOAD)
    reason = StrategyReason.STALE_LOAD if state.name is not None else StrategyReason.UNKNOWN_LOAD
    fresh = StrategyState(name=StrategyName.BALANCED if state.name is not None else None, changed_s=now_s)
    return fresh, _strategy(policy, StrategyName.BALANCED, middle, None, reason)


def _observe(policy: Policy, state: StrategyState, score: float, now_s: float) -> tuple[StrategyState, bool]:
    """The state with the score in it, and whether load jumped."""
    elapsed = now_s - (state.scored_s or now_s)
    # A short mean over about a quarter of the time within which a step must be followed.
    kept = exp(-elapsed / (_follow_s(policy) / 4.0))
    short_count = state.short_count * kept + 1.0
    short = state.short + (score - state.short) / short_count
    noise = sqrt(max(state.variance, NOISE_FLOOR**2))
    jumped = _jumped(policy, state, score, now_s, noise)
    error = noise * sqrt(1.0 / short_count + 1.0 / max(state.count, 1.0))
    moved = jumped or (
        abs(short - state.level) > MOVED * error and _confirmed(policy, state, score, elapsed, noise)
    )
    anchored = moved or now_s - state.anchor_s >= 1.0
    seen = replace(
        state,
        scored_s=now_s,
        short=score if moved else short,
        short_count=1.0 if moved else short_count,
        last=score,
        anchor=score if anchored else state.anchor,
        anchor_s=now_s if anchored else state.anchor_s,
    )
    return (_restarted(seen, score) if moved else _averaged(policy, seen, score, elapsed)), jumped


def _confirmed(policy: Policy, state: StrategyState, score: float, elapsed: float, noise: float) -> bool:
    """Whether the score before was off too, on the same side; one must do where a second comes too late."""
    before, now = state.last - state.level, score - state.level
    return 2.0 * elapsed > _follow_s(policy) or (min(before, now) > noise or max(before, now) < -noise)


def _jumped(policy: Policy, state: StrategyState, score: float, now_s: float, noise: float) -> bool:
    recent = now_s - state.anchor_s <= 2.0
    far = abs(score - state.anchor) >= policy.jump - 1e-9
    return recent and far and abs(score - state.level) > JUMPED * noise


def _restarted(state: StrategyState, score: float) -> StrategyState:
    # Noise grows with load; where load fell, what was seen stays the safer guess until more is.
    grown = max(1.0, score / max(state.level, NOISE_FLOOR)) ** 2
    variance = min(state.variance * grown, max(state.variance, _prior_variance(score)))
    return replace(state, level=score, count=1.0, variance=variance, squares=variance * state.seen)


def _averaged(policy: Policy, state: StrategyState, score: float, elapsed: float) -> StrategyState:
    remembered = exp(-elapsed / max(300.0, 20.0 * policy.tuning_interval_s))
    count = state.count * remembered + 1.0
    off = score - state.level
    # The score was not yet in the level that it is compared with: hence the factor.
    # What lies further off than noise does may be a step on its way: it must not pass for noise.
    far = min(abs(off), FAR_OFF * sqrt(state.variance))
    squares = state.squares * remembered + far * far * state.count / (state.count + 1.0)
    seen = state.seen * remembered + 1.0
    prior = _prior_variance(state.level) * NOISE_PRIOR_WEIGHT
    return replace(
        state,
        level=state.level + off / count,
        count=count,
        squares=squares,
        seen=seen,
        variance=(prior + squares) / (NOISE_PRIOR_WEIGHT + seen),
    )


def _prior_variance(level: float) -> float:
    return max(NOISE_FLOOR, NOISE_PRIOR * level) ** 2


def _plain(policy: Policy, score: float) -> StrategyName:
    if score >= policy.load_threshold_high:
        return StrategyName.PERFORMANCE
    return StrategyName.QUALITY if score < policy.load_threshold_low else StrategyName.BALANCED


def _wanted(policy: Policy, name: StrategyName, level: float, margin: float) -> StrategyName:
    """The strategy that a level asks for, given the one in force."""
    back = policy.hysteresis + margin
    high = policy.load_threshold_high + (-back if name is StrategyName.PERFORMANCE else margin)
    low = policy.load_threshold_low + (back if name is StrategyName.QUALITY else -margin)
    if level >= high:
        return StrategyName.PERFORMANCE
    return StrategyName.QUALITY if level < low else StrategyName.BALANCED


def _margin(policy: Policy, state: StrategyState, elapsed: float) -> float:
    """The level's standard error; nothing right after a move where no further score comes in time."""
    error = sqrt(state.variance / max(state.count, 1.0))
    return error if state.count > 1.0 else error * max(0.0, 1.0 - elapsed / _follow_s(policy))


def _follow_s(policy: Policy) -> float:
    """Seconds within which a step in load must be followed."""
    return max(10.0, policy.tuning_interval_s)


def _change(
    policy: Policy, state: StrategyState, wanted: StrategyName, score: float, now_s: float, jumped: bool
) -> tuple[StrategyState, Strategy]:
    held = state.name or wanted
    up = _ORDER[wanted] > _ORDER[held]
    rested = now_s - state.changed_s >= policy.dwell_s
    skips = jumped and not (state.skipped_up if up else state.skipped_down)
    if not rested and not skips:
        return state, _strategy(policy, held, state.level, score, StrategyReason.DWELLING)
    changed = replace(
        state,
        name=wanted,
        changed_s=now_s,
        skipped_up=not rested and (up or state.skipped_up),
        skipped_down=not rested and (not up or state.skipped_down),
    )
    reason = StrategyReason.JUMP if jumped else StrategyReason.LOAD
    return changed, _strategy(policy, wanted, state.level, score, reason)
