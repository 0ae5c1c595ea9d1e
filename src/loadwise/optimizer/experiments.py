"""Who goes without optimisation, and what that shows: blocks, conversations and rollout under one roof."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from loadwise.decision.burn import Share
from loadwise.decision.facts import Ending, Outcome, RequestFacts
from loadwise.decision.fault import Fault, fault_of
from loadwise.decision.improvement import Gains, Improvement
from loadwise.decision.suspension import PAGED, Burning, SuspendReason, suspension
from loadwise.logs import get_logger
from loadwise.optimizer.assignment import UNASSIGNED, Assignment, Held, unit_of
from loadwise.optimizer.rollouts import Rollouts
from loadwise.optimizer.shares import Shares
from loadwise.optimizer.switchback import Switchback, Tally
from loadwise.optimizer.tallies import Measure, Tallies
from loadwise.ports import Clock, Enrolled, JsonObject
from loadwise.settings import OptimizationConfig
from loadwise.telemetry.objectives import ObjectiveCounts

log = get_logger(__name__)
NO_ROOM: Final = frozenset({429, 503})
# Burn rates that are a page look no further back.
LOOKS_BACK_S: Final = max(pair.long_s for pair in PAGED)
Windows = Mapping[str, Mapping[float, Share]]


class Experiments:
    """Assigns each request once, and hears once how it ended; times are monotonic seconds.

    Blocks follow the wall clock, so that the processes of one server agree.
    """

    def __init__(self, config: OptimizationConfig, clock: Clock) -> None:
        self._clock = clock
        self._epoch_s = clock.wall_s() - clock.monotonic_s()
        self._config = config
        # Equal for equal experiments and rollouts: what is compared is the same.
        self.settings = _fingerprint(config)
        self.switchback = self._blocks(config)
        self.rollouts = Rollouts(config)
        # Requests of unoptimised blocks, by route, whatever they are compared with.
        self._left_alone = ObjectiveCounts(keep_s=LOOKS_BACK_S)
        # What conversations showed, and the number of that comparison, which no other has.
        self._by_route: dict[str, Tallies] = {}
        self.number = secrets.randbits(62)

    def configure(self, config: OptimizationConfig) -> None:
        """Another experiment begins anew; the same one goes on, also under other settings."""
        same = config.experiment == self._config.experiment
        moved = config.rollout != self._config.rollout
        self._config, self.settings = config, _fingerprint(config)
        self.rollouts.configure(config)
        if same:
            self.switchback.resize(config.metrics_history_size)
            if moved:
                self.switchback.restart(self._clock.monotonic_s() + self._epoch_s)
            return
        self.switchback = self._blocks(config)
        self._by_route.clear()
        self.number = secrets.randbits(62)

    def _blocks(self, config: OptimizationConfig) -> Switchback:
        now_s = self._clock.monotonic_s() + self._epoch_s
        return Switchback(config.experiment.schedule(), size=config.metrics_history_size, now_s=now_s)

    # --- one request ---

    def assign(
        self, route: str, request: RequestFacts, now_s: float, *, continues: bool = False, again: bool = False
    ) -> Assignment:
        """Where a request belongs; one that its client or key switched off belongs nowhere.

        `continues` binds it to a conversation's member, `again` is a retry: blocks count neither.
        """
        if request.off or not request.principal.optimize:
            return UNASSIGNED
        held = self._in_control(now_s)
        if request.model != route:
            return Assignment(held=held) if held is not None else UNASSIGNED
        unit = unit_of(request) or str(now_s)
        part = self.shares(route, request.principal.key_id, now_s).part(unit)
        if part.held is Held.ADVISORY:
            return Assignment(held=part.held, route=route)
        block = None if continues or again else self._block(now_s)
        return Assignment(
            held=held or part.held,
            block=block,
            suspended=block is not None and self.switchback.suspended(now_s + self._epoch_s),
            route=route,
            unit=unit,
            # Unoptimised blocks say nothing of conversations and shares.
            enrolled=None if held is not None else part.enrolled,
        )

    def shares(self, route: str, key: str, now_s: float) -> Shares:
        """What chance draws a request of that key by, and every process alike."""
        settings, rollouts = self._config.experiment, self.rollouts
        ramp = None if rollouts.idle else rollouts.ramp(route, key, now_s)
        return Shares(route, settings.conversation_share, settings.seed, self.number, rollouts.number, ramp)

    def leaves_alone(self, now_s: float) -> bool:
        """Whether this is a block without optimisation."""
        return self._in_control(now_s) is not None

    def done(
        self, started_s: float, request: RequestFacts, held: Held | None, enrolled: Enrolled | None
    ) -> Assignment:
        """The part of a request that another process dispatched; blocks count it where both agreed on it.

        A block may have changed while that process was being told.
        """
        if held is Held.ADVISORY:
            return Assignment(held=held, route=request.model)
        block, at_s = self._block(started_s), started_s + self._epoch_s
        alone, suspended = held is Held.CONTROL_BLOCK, self.switchback.suspended(at_s)
        if alone is not self.switchback.control(at_s) and not suspended:
            block = None
        return Assignment(
            held=held,
            block=block,
            suspended=block is not None and suspended and not alone,
            route=request.model,
            unit=unit_of(request),
            enrolled=enrolled,
        )

    def refused(self, assignment: Assignment, status: int) -> None:
        """A request found no room: it missed its objectives, and unoptimised blocks make way."""
        if status not in NO_ROOM or assignment.block is None:
            return
        if assignment.suspended:
            self.switchback.cut(assignment.block)
            return
        self.switchback.refused(assignment.block)
        if assignment.held is Held.CONTROL_BLOCK:
            self._suspend(SuspendReason.REFUSING)

    def note(
        self, assignment: Assignment, outcome: Outcome, within: bool | None, quality: float | None
    ) -> None:
        """Counts how a request ended; what its client did says nothing. `quality` is its member's (0..1)."""
        fault = fault_of(outcome)
        if outcome.ending is Ending.ABANDONED or fault is Fault.CLIENT:
            return
        failed = fault is not Fault.NOBODY
        if assignment.held is Held.CONTROL_BLOCK and assignment.route:
            self._left_alone.note(assignment.route, within, outcome.finished_s)
        if assignment.block is not None:
            if assignment.suspended:
                self.switchback.cut(assignment.block)
            else:
                self.switchback.note(assignment.block, outcome, within, failed=failed)
        if assignment.enrolled is None:
            return
        self.compare(assignment.route, assignment.unit, assignment.enrolled, Measure.ERRORS, float(failed))
        if quality is not None and not failed:
            self.compare(assignment.route, assignment.unit, assignment.enrolled, Measure.QUALITY, quality)

    def compare(self, route: str, unit: str, enrolled: Enrolled, measure: Measure, value: float) -> None:
        """Counts a value (0..1) of a request in those of its comparisons that go on."""
        if enrolled.conversations == self.number:
            tallies = self._by_route.get(route)
            if tallies is None:
                tallies = self._by_route[route] = Tallies()
            tallies.add(measure, unit, value, optimised=not enrolled.left_alone)
        self.rollouts.note(route, unit, enrolled, measure, value)

    # --- the loop ---

    def watch(
        self,
        load_score: float | None,
        objectives: Callable[[], Windows] = dict,
        opened: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """An unoptimised block that would do harm is suspended.

        `objectives` are each route's requests in `burn.WINDOWS_S`; `opened` are unoptimised ones in flight.
        """
        now_s = self._clock.monotonic_s()
        at_s = now_s + self._epoch_s
        if self._in_control(now_s) is None:
            return
        errors, answers = self.switchback.errors(at_s)
        reason = suspension(
            load_score=load_score,
            overloaded_at=self._config.experiment.suspend_at_load,
            errors=errors,
            answers=answers,
            error_budget=self._config.alert_error_rate,
            routes=self._burning(objectives(), opened(), now_s),
            target=self._config.alert_objective_target,
        )
        if reason is not None:
            self._suspend(reason)

    def _burning(self, objectives: Windows, opened: Mapping[str, int], now_s: float) -> Iterable[Burning]:
        alone = self._left_alone
        for route, windows in objectives.items():
            own = {span: alone.over(route, span, now_s) for span in windows}
            yield Burning(everyone=windows, unoptimised=own, open=opened.get(route, 0))

    def turn(self) -> None:
        """Rollouts move where the evidence lets them; blocks then compare what is new."""
        now_s = self._clock.monotonic_s()
        if not self.rollouts.idle and self.rollouts.turn(self.improvement(), now_s):
            self.switchback.restart(now_s + self._epoch_s)

    # --- what outlives the process ---

    def take_up(
        self, tallies: Mapping[int, Tally], first_stratum: int, routes: Mapping[str, Tallies], number: int
    ) -> None:
        """The comparisons of an earlier process go on."""
        self.switchback.take_up(tallies, first_stratum, self._clock.monotonic_s() + self._epoch_s)
        self._by_route, self.number = dict(routes), number

    # --- what was found ---

    def gains(self) -> Gains:
        """What the blocks say."""
        return self.switchback.gains(self._clock.monotonic_s() + self._epoch_s)

    def improvement(self) -> Improvement | None:
        """The gain in goodput with its interval; None before the first look."""
        return self.gains().goodput

    def conversations(self) -> Mapping[str, Tallies]:
        """Errors, quality and scores per route."""
        return self._by_route

    def now(self) -> JsonObject:
        """The block that it is."""
        return self.switchback.now(self._clock.monotonic_s() + self._epoch_s)

    # --- inside ---

    def _in_control(self, now_s: float) -> Held | None:
        at_s = now_s + self._epoch_s
        if self._config.experiment.block_share <= 0.0 or not self.switchback.control(at_s):
            return None
        return None if self.switchback.suspended(at_s) else Held.CONTROL_BLOCK

    def _block(self, now_s: float) -> int | None:
        if self._config.experiment.block_share <= 0.0:
            return None
        return self.switchback.counted(now_s + self._epoch_s)

    def _suspend(self, reason: SuspendReason) -> None:
        self.switchback.suspend(self._clock.monotonic_s() + self._epoch_s, reason)
        log.warning("control_block_suspended", reason=reason.value)


def _fingerprint(config: OptimizationConfig) -> str:
    values = [part.model_dump(mode="json") for part in (config.experiment, config.rollout)]
    return hashlib.sha256(msgspec.json.encode(values, order="sorted")).hexdigest()
