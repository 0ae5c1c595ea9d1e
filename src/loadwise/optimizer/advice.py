"""What optimisation would have done with a request that it must not touch."""

from __future__ import annotations

from collections.abc import Mapping

from loadwise.decision import ensemble, parameters
from loadwise.decision.choices import Choice, Remembered
from loadwise.decision.facts import MemberPressure, RequestFacts, Route
from loadwise.decision.strategy import Strategy
from loadwise.optimizer.ensemble_manager import ModelEnsembleManager
from loadwise.ports import Advice


def advised(
    manager: ModelEnsembleManager,
    route: Route,
    request: RequestFacts,
    pressures: Mapping[str, MemberPressure],
    strategy: Strategy | None,
    remembered: Remembered | None,
    now_s: float,
) -> Advice | None:
    """The member, reason and changes that the core would choose now; None where it would refuse."""
    choice = ensemble.select(
        manager.policy, route, request, manager.beliefs, pressures, strategy, manager.random.random(), now_s,
        remembered=remembered,
    )  # fmt: skip
    if not isinstance(choice, Choice):
        return None
    member = next(member for member in route.members if member.member_id == choice.member_id)
    answers = manager.beliefs[member.member_id].answers
    tuning = parameters.tune(manager.policy, strategy, request, member, answers)
    return Advice(member.member_id, choice.reason.value, tuning.changes)
