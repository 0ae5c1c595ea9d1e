"""Small facts for the core's tests."""

from __future__ import annotations

from typing import Any

from loadwise.decision import beliefs, outcome, strategy
from loadwise.decision.beliefs import Belief
from loadwise.decision.facts import (
    Capabilities,
    Ending,
    EnsembleStrategy,
    Feature,
    Member,
    MemberPressure,
    Outcome,
    Policy,
    Replica,
    RequestFacts,
    Route,
)
from loadwise.decision.strategy import Strategy

POLICY = Policy()
ABLE = Capabilities(features=frozenset({Feature.TOP_K, Feature.SEED}), context_tokens=1024, embedded=True)
QUALITIES = {"fast": 0.7, "balanced": 0.85, "accurate": 1.0}
COSTS = {"fast": 1.0, "balanced": 4.0, "accurate": 12.0}


def member(name: str = "accurate", **changes: Any) -> Member:
    values: dict[str, Any] = {
        "member_id": name,
        "replicas": (Replica(replica_id=f"{name}-0", pool_id="local", capacity_requests=32),),
        "quality": QUALITIES.get(name),
        "relative_cost": COSTS.get(name),
        "capabilities": ABLE,
    }
    return Member(**{**values, **changes})


def route(strategy: EnsembleStrategy = EnsembleStrategy.ADAPTIVE, **changes: Any) -> Route:
    values: dict[str, Any] = {
        "name": "auto",
        "members": tuple(member(name) for name in QUALITIES),
        "default_member": "accurate",
        "strategy": strategy,
    }
    return Route(**{**values, **changes})


def request(**changes: Any) -> RequestFacts:
    return RequestFacts(**{"request_id": "r", "prompt_tokens": 100, **changes})


def at_load(load: float | None, policy: Policy = POLICY) -> Strategy:
    return strategy.choose(policy, strategy.StrategyState(), load, 0.0)[1]


def succeeded(name: str = "accurate", at_s: float = 1.0, **changes: Any) -> Outcome:
    values: dict[str, Any] = {
        "request_id": "r",
        "member_id": name,
        "replica_id": f"{name}-0",
        "ending": Ending.SUCCEEDED,
        "finished_s": at_s,
        "total_s": 1.0,
        "time_to_first_token_s": 0.1,
        "prompt_tokens": 100,
        "output_tokens": 101,
        "finish_reason": "stop",
    }
    return Outcome(**{**values, **changes})


def failed(name: str = "accurate", at_s: float = 1.0, status: int | None = 500) -> Outcome:
    return Outcome(
        request_id="r",
        member_id=name,
        replica_id=f"{name}-0",
        ending=Ending.FAILED,
        finished_s=at_s,
        status=status,
    )


def fresh(of: Route, now_s: float = 0.0) -> dict[str, Belief]:
    return beliefs.initial_beliefs(of, now_s)


def taught(of: Route, each_s: dict[str, float], count: int = 40, now_s: float = 10.0) -> dict[str, Belief]:
    """Beliefs after `count` answers per member at the given seconds per output token."""
    known = fresh(of)
    for name, seconds in each_s.items():
        for at in range(count):
            ended = succeeded(
                name, now_s * (at + 1) / count, total_s=0.05 + 100 * seconds, time_to_first_token_s=0.05
            )
            known[name] = outcome.learn(POLICY, known[name], ended)
    return known


def pressures(of: Route, **in_flight: int) -> dict[str, MemberPressure]:
    total = sum(in_flight.values())
    return {
        m.member_id: MemberPressure(
            member_id=m.member_id,
            in_flight=in_flight.get(m.member_id, 0),
            pool_in_flight=total,
            capacity_requests=32,
        )
        for m in of.members
    }
