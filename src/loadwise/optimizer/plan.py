"""What a process needs to decide requests by itself: published whole by the optimizer, never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from loadwise.decision.beliefs import Belief, Fit, prior_of
from loadwise.decision.facts import Policy, Route, StrategyName
from loadwise.decision.strategy import Strategy
from loadwise.optimizer.fleet import AUTO
from loadwise.optimizer.shares import Shares

if TYPE_CHECKING:
    from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer

# Inside an engine requests carry no key of loadwise's.
NO_KEY: Final = ""
_NO_LOAD: Final = ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The state of the optimizer that requests are decided by. Plans of one optimizer are numbered."""

    serial: int
    # The machine's monotonic clock, which its processes share.
    made_s: float
    config_version: int
    policy: Policy
    # The pool's strategy, also while it is not applied; None before the first.
    in_force: Strategy | None
    route: Route
    beliefs: Mapping[str, Belief]
    running: bool = True
    # The present block of time is served without optimisation.
    control: bool = False
    # Which conversations and requests chance leaves alone.
    shares: Shares | None = None

    @property
    def known_by(self) -> tuple[int, float]:
        """What no other plan has, whichever process made it."""
        return self.serial, self.made_s

    @property
    def strategy(self) -> Strategy | None:
        """The strategy that requests are tuned by; None while stopped."""
        return self.in_force if self.running else None


def plan_of(optimizer: ServerSideOptimizer, serial: int) -> Plan:
    """The optimizer's present state as a plan; its members share one engine."""
    now_s, ensemble = optimizer.clock.monotonic_s(), optimizer.ensemble_manager
    director = optimizer.director
    return Plan(
        serial=serial,
        made_s=now_s,
        config_version=director.config_version,
        policy=ensemble.policy,
        in_force=next(iter(director.strategies.values()), None),
        route=ensemble.fleet.routes[AUTO],
        beliefs=equally_fast(ensemble.beliefs),
        running=director.running,
        control=optimizer.recorder.experiments.leaves_alone(now_s),
        shares=optimizer.recorder.experiments.shares(AUTO, NO_KEY, now_s),
    )


def equally_fast(beliefs: Mapping[str, Belief]) -> dict[str, Belief]:
    """Beliefs that differ in quality and reliability only: on one engine no choice gives relief from load."""
    return {
        name: belief._replace(
            output_fit=Fit(assumed.output_idle_s, 0.0),
            first_fit=Fit(assumed.first_idle_s, 0.0),
            trend=1.0,
            cost=1.0,
            by_load=_NO_LOAD,
            recent_misses=0.0,
        )
        for name, belief in beliefs.items()
        for assumed in [prior_of(belief.objectives, belief.prior.full_work)]
    }


def unloaded(plan: Plan) -> Strategy | None:
    """The strategy by which a member is selected: load does not enter, so that of a quiet engine."""
    strategy = plan.strategy
    if strategy is None or strategy.name is StrategyName.QUALITY:
        return strategy
    return Strategy(
        name=StrategyName.QUALITY,
        parameters=strategy.parameters,
        compile_mode=strategy.compile_mode,
        load_score=strategy.load_score,
        reason=strategy.reason,
    )
