"""Requests that other processes decided: the optimizer hears of each as if its director had dispatched it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from loadwise.decision.choices import ChoiceReason
from loadwise.decision.facts import Ending, Outcome
from loadwise.decision.question import Question
from loadwise.optimizer.assignment import UNASSIGNED
from loadwise.optimizer.desk import Began, Ended
from loadwise.optimizer.director import NOTHING
from loadwise.optimizer.fleet import AUTO
from loadwise.optimizer.in_flight import Open
from loadwise.optimizer.plan import Plan, unloaded
from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer
from loadwise.ports import Dispatch
from loadwise.telemetry.journal.events import Chose, Sent

# Plans that notes may still be about: some are made each second, and each is followed for seconds.
PLANS: Final = 256
# Who was not free to be optimised or not: named, off, or bound to a member.
BOUND: Final = frozenset(
    {
        ChoiceReason.NAMED,
        ChoiceReason.OFF,
        ChoiceReason.STOPPED,
        ChoiceReason.CONVERSATION,
        ChoiceReason.CONVERSATION_RETURNED,
    }
)


class Beside:
    """Takes notes of processes in; every request that began ends exactly once."""

    def __init__(self, optimizer: ServerSideOptimizer) -> None:
        self._optimizer = optimizer
        # By process, and there by number, in the order in which they began.
        self._open: dict[str, dict[int, Dispatch]] = {}
        self._plans: OrderedDict[tuple[int, float], Plan] = OrderedDict()
        # Decisions by a plan that is not known here: they count, and the journal has only their outcome.
        self.unexplained = 0

    def published(self, plan: Plan) -> None:
        """Notes may be about that plan from now on."""
        self._plans[plan.known_by] = plan
        if len(self._plans) > PLANS:
            self._plans.popitem(last=False)

    def take(self, process: str, note: Began | Ended) -> None:
        """One note of a process, in its order."""
        if isinstance(note, Began):
            self._began(process, note)
        else:
            dispatch = self._open.get(process, {}).pop(note.number, None)
            if dispatch is not None:
                self._optimizer.director.finish(dispatch, note.outcome())

    def ended_below(self, process: str, number: int) -> None:
        """Requests below `number` are over, also those whose end was never told."""
        for open_number in [each for each in self._open.get(process, {}) if each < number]:
            self._lost(self._open[process].pop(open_number), Ending.ABANDONED)

    def left(self, process: str, *, hangs: bool = False) -> None:
        """The process is no more: its open requests failed; with `hangs`, nobody knows how they ended."""
        ending = Ending.ABANDONED if hangs else Ending.FAILED
        for dispatch in self._open.pop(process, {}).values():
            self._lost(dispatch, ending)

    def _began(self, process: str, note: Began) -> None:
        optimizer, dispatch = self._optimizer, note.dispatch
        route = optimizer.ensemble_manager.fleet.routes[AUTO]
        belief = optimizer.ensemble_manager.beliefs.get(dispatch.member_id)
        pool_id = next(r.pool_id for m in route.members for r in m.replicas)
        assignment, grounds = UNASSIGNED, note.grounds
        if optimizer.director.running and grounds.choice.reason not in BOUND:
            assignment = optimizer.recorder.experiments.done(
                dispatch.started_s, dispatch.request, grounds.held, grounds.enrolled
            )
        owed = 0.0 if belief is None else belief.answer_tokens * dispatch.request.n
        optimizer.director.in_flight.open(Open(dispatch, pool_id, owed, route.objectives, assignment))
        optimizer.telemetry.decided(dispatch, note.decision_s)
        self._open.setdefault(process, {})[note.number] = dispatch
        self._tell(note)

    def _tell(self, note: Began) -> None:
        """The journal hears what was decided, and from what."""
        witness, plan = self._optimizer.ensemble_manager.witness, self._plans.get(note.grounds.plan)
        if witness is None:
            return
        if plan is None:
            self.unexplained += 1
            return
        witness(Chose(_question(plan, note), note.grounds.choice))
        # Each member has one replica here: the engine.
        witness(Sent(note.dispatch, note.grounds.tuning, 0.0, NOTHING, None, note.grounds.enrolled))

    def _lost(self, dispatch: Dispatch, ending: Ending) -> None:
        outcome = Outcome(
            request_id=dispatch.request.request_id,
            member_id=dispatch.member_id,
            replica_id=dispatch.replica_id,
            ending=ending,
            finished_s=self._optimizer.clock.monotonic_s(),
            control=dispatch.control,
        )
        self._optimizer.director.finish(dispatch, outcome)


def _question(plan: Plan, note: Began) -> Question:
    """What the desk asked when it decided by that plan."""
    dispatch = note.dispatch
    return Question(
        policy=plan.policy,
        route=plan.route,
        request=dispatch.request,
        beliefs=tuple(plan.beliefs.values()),
        pressures=(),
        strategy=unloaded(plan),
        draw=note.grounds.draw,
        now_s=dispatch.started_s,
        remembered=None,
        excluded=frozenset(),
        control=note.grounds.held is not None,
    )
