"""Requests that other processes decided: the optimizer hears of each as if its director had dispatched it."""

from __future__ import annotations

from loadwise.decision.choices import ChoiceReason
from loadwise.decision.facts import Ending, Outcome
from loadwise.optimizer.assignment import UNASSIGNED
from loadwise.optimizer.desk import Began, Ended
from loadwise.optimizer.director import comparable
from loadwise.optimizer.fleet import AUTO
from loadwise.optimizer.in_flight import Open
from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer
from loadwise.ports import Dispatch


class Beside:
    """Takes notes of processes in; every request that began ends exactly once."""

    def __init__(self, optimizer: ServerSideOptimizer) -> None:
        self._optimizer = optimizer
        # By process, and there by number, in the order in which they began.
        self._open: dict[str, dict[int, Dispatch]] = {}

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

    def left(self, process: str) -> None:
        """The process is no more: what it had not answered failed."""
        for dispatch in self._open.pop(process, {}).values():
            self._lost(dispatch, Ending.FAILED)

    def _began(self, process: str, note: Began) -> None:
        optimizer, dispatch = self._optimizer, note.dispatch
        route = optimizer.ensemble_manager.fleet.routes[AUTO]
        belief = optimizer.ensemble_manager.beliefs.get(dispatch.member_id)
        pool_id = next(r.pool_id for m in route.members for r in m.replicas)
        assignment = UNASSIGNED
        if optimizer.director.running and comparable(ChoiceReason(dispatch.reason)):
            assignment = optimizer.recorder.experiments.done(dispatch.started_s, left_alone=dispatch.control)
        owed = 0.0 if belief is None else belief.answer_tokens * dispatch.request.n
        optimizer.director.in_flight.open(Open(dispatch, pool_id, owed, route.objectives, assignment))
        optimizer.telemetry.decided(dispatch, note.decision_s)
        self._open.setdefault(process, {})[note.number] = dispatch

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
