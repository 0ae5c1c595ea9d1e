"""The loop itself: (policy, state, observation) -> (state, decision); a decision carries its reasons.

Deterministic: the same state and observation give the same decision, so any step can be replayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from loadwise.decision import load, outcome, strategy
from loadwise.decision.beliefs import Belief
from loadwise.decision.build_facts import BuildFact, BuildOption, ModelUse
from loadwise.decision.builds import BuildPlan, plan
from loadwise.decision.facts import (
    EngineReading,
    Evidence,
    HostReading,
    LoadWeights,
    Policy,
    ServiceReading,
    StrategyName,
)
from loadwise.decision.health import HealthChange, review
from loadwise.decision.lead import Crew, LeadState, lead
from loadwise.decision.load import LoadScore, ServerLoadMetrics
from loadwise.decision.silence import Silence
from loadwise.decision.strategy import Strategy, StrategyState

# Beliefs fade over minutes: to let them fade every second would be most of a step's cost.
DRIFT_AFTER_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the shells saw at `now_s`; beliefs and builds as they stand."""

    now_s: float
    # Per pool id.
    engines: Mapping[str, Sequence[EngineReading]] = field(default_factory=dict)
    services: Mapping[str, ServiceReading] = field(default_factory=dict)
    host: HostReading | None = None
    # Pools that run on this host, whose load its figures are; None: all do.
    host_pools: frozenset[str] | None = None
    # Per route name, each member's belief.
    beliefs: Mapping[str, Mapping[str, Belief]] = field(default_factory=dict)
    # Members with requests in flight, and for how long they gave no token.
    silences: Sequence[Silence] = ()
    # Members of a route that share a device, and what was asked of the route.
    crews: Sequence[Crew] = ()
    # Compiled models in order of importance, and their builds.
    compiled: Sequence[str] = ()
    builds: Sequence[BuildFact] = ()
    builds_enabled: bool = True
    # What can be built here, and how much each compiled model is used.
    build_options: Sequence[BuildOption] = ()
    model_uses: Mapping[str, ModelUse] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the loop remembers: one strategy state per pool, one lead per route and shared pool."""

    pools: Mapping[str, StrategyState] = field(default_factory=dict)
    leads: Mapping[tuple[str, str], LeadState] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDecision:
    """One pool's metrics, score and strategy."""

    pool_id: str
    metrics: ServerLoadMetrics
    score: LoadScore
    strategy: Strategy
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do now, per pool, per route and for the compiler; `worst_pool` gives the single figures."""

    decided_s: float
    pools: Mapping[str, PoolDecision]
    worst_pool: str
    builds: BuildPlan
    # Members to take out or bring back, per route.
    health: Mapping[str, Sequence[HealthChange]]
    # Every belief as it stands now: drifted where it heard nothing for `DRIFT_AFTER_S`, and with its
    # health change in it.
    beliefs: Mapping[str, Mapping[str, Belief]]
    evidence: Sequence[Evidence] = ()

    @property
    def worst(self) -> PoolDecision:
        """The pool under most load (of equals the first by name)."""
        return self.pools[self.worst_pool]


def step(policy: Policy, state: State, observation: Observation) -> tuple[State, Decision]:
    """The next state and decision; pools without readings are decided on the host's alone."""
    names = sorted({*observation.engines, *observation.services, *state.pools}) or ["local"]
    states: dict[str, StrategyState] = {}
    pools: dict[str, PoolDecision] = {}
    for name in names:
        states[name], pools[name] = _pool(policy, state.pools.get(name, StrategyState()), observation, name)
    worst = max(names, key=lambda name: _pressing(pools[name]))
    health, beliefs = _beliefs(policy, observation)
    leads = _leads(state, observation, beliefs)
    if leads:
        pools = _with_leads(pools, leads)
    builds = plan(
        policy,
        pools[worst].strategy,
        observation.compiled,
        observation.builds,
        observation.now_s,
        enabled=observation.builds_enabled,
        options=observation.build_options,
        uses=observation.model_uses,
    )
    decision = Decision(
        decided_s=observation.now_s,
        pools=pools,
        worst_pool=worst,
        builds=builds,
        health=health,
        beliefs=beliefs,
        evidence=_evidence(pools[worst]),
    )
    return State(pools=states, leads=leads), decision


def _pool(
    policy: Policy, before: StrategyState, observation: Observation, name: str
) -> tuple[StrategyState, PoolDecision]:
    now_s = observation.now_s
    metrics = load.measure(
        observation.engines.get(name, ()),
        observation.host,
        observation.services.get(name),
        now_s,
        policy.stale_after_s,
    )
    score = load.score(metrics, _weights(policy, observation, name), policy.objectives)
    after, chosen = strategy.choose(policy, before, score.value, now_s)
    changed = before.name is not None and chosen.name is not before.name
    return after, PoolDecision(pool_id=name, metrics=metrics, score=score, strategy=chosen, changed=changed)


def _leads(
    state: State, observation: Observation, beliefs: Mapping[str, Mapping[str, Belief]]
) -> dict[tuple[str, str], LeadState]:
    return {
        (crew.route, crew.pool_id): lead(
            state.leads.get((crew.route, crew.pool_id), LeadState()),
            crew,
            beliefs[crew.route],
            observation.now_s,
        )
        for crew in observation.crews
    }


def _with_leads(
    pools: Mapping[str, PoolDecision], leads: Mapping[tuple[str, str], LeadState]
) -> dict[str, PoolDecision]:
    """Every strategy names the leads: a route may span several pools."""
    named: dict[str, frozenset[str]] = {}
    for (route, _), found in leads.items():
        if found.member_id is not None:
            named[route] = named.get(route, frozenset()) | {found.member_id}
    return {name: replace(pool, strategy=replace(pool.strategy, leads=named)) for name, pool in pools.items()}


def _weights(policy: Policy, observation: Observation, pool_id: str) -> LoadWeights:
    """A pool elsewhere is not loaded because this machine is."""
    if observation.host_pools is None or pool_id in observation.host_pools:
        return policy.weights
    return replace(policy.weights, cpu=0.0, memory=0.0, gpu=0.0)


_RANK = {StrategyName.QUALITY: 0, StrategyName.BALANCED: 1, StrategyName.PERFORMANCE: 2}


def _pressing(pool: PoolDecision) -> tuple[int, float]:
    value = pool.score.value
    return _RANK[pool.strategy.name], -1.0 if value is None else value


def _beliefs(
    policy: Policy, observation: Observation
) -> tuple[dict[str, tuple[HealthChange, ...]], dict[str, dict[str, Belief]]]:
    changes: dict[str, tuple[HealthChange, ...]] = {}
    beliefs: dict[str, dict[str, Belief]] = {}
    for route, members in observation.beliefs.items():
        now = {
            name: outcome.drifted(policy, belief, observation.now_s)
            if observation.now_s - belief.updated_s >= DRIFT_AFTER_S
            else belief
            for name, belief in members.items()
        }
        changes[route] = review(policy, now, observation.now_s, observation.silences)
        now.update((change.member_id, change.belief) for change in changes[route])
        beliefs[route] = now
    return changes, beliefs


def _evidence(pool: PoolDecision) -> tuple[Evidence, ...]:
    """The score's components, largest first, and what was absent."""
    parts = sorted(pool.score.parts.items(), key=lambda part: (-part[1], part[0]))
    found = [Evidence(name="load_score", value=pool.score.value, note=f"pool {pool.pool_id}")]
    found += [Evidence(name=name, value=round(value, 4)) for name, value in parts]
    found += [Evidence(name=name, value=None, note="absent") for name in pool.score.absent]
    return tuple(found)
