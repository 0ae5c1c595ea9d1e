"""Decides each request and hears how it ended: the core's decisions over live counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from loadwise.clock import SystemClock
from loadwise.decision import parameters
from loadwise.decision.admission import Entry, enter
from loadwise.decision.beliefs import pool_of
from loadwise.decision.candidates import Refusal
from loadwise.decision.choices import Choice, Remembered
from loadwise.decision.facts import (
    ANONYMOUS,
    Ending,
    Member,
    MemberPressure,
    Outcome,
    Principal,
    RequestFacts,
    Route,
    StrategyName,
)
from loadwise.decision.lead import overflowed
from loadwise.decision.limits import NO_LIMITS
from loadwise.decision.lineup import lineup_of
from loadwise.decision.question import UNTOUCHED
from loadwise.decision.quick import new
from loadwise.decision.replicas import pick_replica
from loadwise.decision.strategy import Strategy, for_route
from loadwise.errors import RequestError
from loadwise.logs import get_logger
from loadwise.optimizer.advice import advised
from loadwise.optimizer.assignment import UNASSIGNED, Assignment, Held, reason_of
from loadwise.optimizer.cards import cards
from loadwise.optimizer.conversations import Conversations
from loadwise.optimizer.demand import Demand
from loadwise.optimizer.ensemble_manager import ModelEnsembleManager
from loadwise.optimizer.in_flight import InFlight, Open
from loadwise.optimizer.places import Places
from loadwise.optimizer.pressures import Pressures
from loadwise.optimizer.prompts import PromptLengths, size_of
from loadwise.optimizer.recorder import Recorder
from loadwise.optimizer.refusals import no_room, none_left, refused, unknown_model
from loadwise.optimizer.terms import expected_tokens
from loadwise.ports import Call, Clock, Dispatch, ModelCard, PromptSize
from loadwise.telemetry import names
from loadwise.telemetry.journal.events import Ended, Judged, Refused, Sent

log = get_logger(__name__)
# Where there is one replica, no count decides.
NOTHING: Final[Mapping[str, int]] = {}


class EnsembleDirector:
    """The gateway's way in: chooses member, replica and parameters, and learns from each ending.

    Nothing in `dispatch` waits. While `running` is False the default member answers untouched.
    """

    def __init__(
        self,
        ensemble: ModelEnsembleManager,
        recorder: Recorder,
        *,
        clock: Clock | None = None,
        conversations: Conversations | None = None,
    ) -> None:
        self.ensemble = ensemble
        self.recorder = recorder
        self.running = True
        self.config_version = 1
        # By pool; replaced as a whole by the control loop.
        self.strategies: Mapping[str, Strategy] = {}
        self.in_flight = InFlight()
        self.places = Places()
        self._pressures = Pressures(ensemble, self.in_flight, self.places)
        self.demand = Demand()
        self.prompts = PromptLengths()
        # Called when more is asked for than a lead bears, before the request is decided; set by the loop.
        self.on_surge: Callable[[], None] = lambda: None
        self.conversations = conversations or Conversations()
        self._clock: Clock = clock or SystemClock()
        self._created_s = int(self._clock.wall_s())
        self._listeners: list[Callable[[float | None, bool | None], None]] = []

    def on_finished(self, listener: Callable[[float | None, bool | None], None]) -> None:
        """Tells `listener` the load score and whether objectives were met, of each optimised request."""
        self._listeners.append(listener)

    # --- what the gateway asks before a decision ---

    def models(self, principal: Principal = ANONYMOUS) -> Sequence[ModelCard]:
        """Every route, then every member whose engines are here, as far as the principal may ask them."""
        return cards(self.ensemble.fleet, self._created_s, principal)

    async def measure(self, model: str, call: Call) -> PromptSize:
        """The prompt's length for the members that `model` names; a bound where nobody can count."""
        route = self.ensemble.fleet.route_of(model)
        if route is None:
            return await size_of(call, [], {})
        members = [m for m in route.members if m.member_id == model] or route.members
        size = await size_of(call, members, self.ensemble.fleet.engines())
        return self.prompts.expected(model, size)

    # --- deciding ---

    def dispatch(self, request: RequestFacts, exclude: frozenset[str] = frozenset()) -> Dispatch:
        """Member, replica and changes for a request, counted as in flight until `finish`.

        Raises `RequestError`: 404, 400, 429 with `retry_after_s`, or 503.
        """
        began_s = self._clock.monotonic_s()
        try:
            dispatch = self._decided(request, exclude, began_s)
        except Exception as error:
            known = error if isinstance(error, RequestError) else _gateway_failed(500)
            self._turned_away(request, known, began_s, again=bool(exclude))
            raise
        if self.recorder.monitoring is not None:
            self.recorder.monitoring.started(dispatch)
        if exclude:
            self.recorder.telemetry.count(names.RETRIES, dispatch.member_id)
        self.recorder.telemetry.decided(dispatch, self._clock.monotonic_s() - began_s)
        return dispatch

    def refused(self, request_id: str, model: str, status: int) -> None:
        """A request that failed in the gateway, before it could be decided, is counted and journaled."""
        if self.ensemble.fleet.route_of(model) is None:
            self.recorder.telemetry.refused(status)
            return
        request = RequestFacts(request_id=request_id, model=model)
        self._turned_away(request, _gateway_failed(status), self._clock.monotonic_s(), again=False)

    def _turned_away(self, request: RequestFacts, error: RequestError, now_s: float, *, again: bool) -> None:
        # A request that was tried already is not refused: it failed where it was tried.
        if not again:
            self.recorder.refused(request.model, error.status)
        if self.ensemble.witness is not None:
            self.ensemble.witness(
                Refused(request, error.status, error.code, error.retry_after_s, now_s, again)
            )

    def _decided(self, request: RequestFacts, exclude: frozenset[str], now_s: float) -> Dispatch:
        route = self.ensemble.fleet.route_of(request.model)
        if route is None:
            raise unknown_model(request, [card.model_id for card in self.models(request.principal)])
        request = parameters.as_bound(self.ensemble.policy, request)
        if not exclude and self.demand.ask(request, now_s) and self.running:
            self.on_surge()
        remembered = self._remembered(route, request)
        pressures = self._pressures.of_route(route)
        strategy = self._strategy(route)
        assignment = self._assigned(route, request, strategy, remembered, exclude, now_s)
        if assignment.held is Held.ADVISORY:
            advice = advised(self.ensemble, route, request, pressures, strategy, remembered, now_s)
            assignment = assignment._replace(advice=advice)
        control = assignment.held is not None and _free_of(remembered, route)
        try:
            choice, let_in = self._chosen(
                route, request, pressures, strategy, remembered, exclude, control, now_s
            )
        except RequestError as error:
            self.recorder.experiments.refused(assignment, error.status)
            raise
        member = _member(route, choice.member_id)
        return self._opened(route, request, member, choice, let_in, strategy, exclude, now_s, assignment)

    def _assigned(
        self,
        route: Route,
        request: RequestFacts,
        strategy: Strategy | None,
        remembered: Remembered | None,
        exclude: frozenset[str],
        now_s: float,
    ) -> Assignment:
        """What experiments and rollout make of the request; nothing while nothing is optimised."""
        if strategy is None:
            return UNASSIGNED
        return self.recorder.experiments.assign(
            route.name, request, now_s, continues=remembered is not None, again=bool(exclude)
        )

    def _remembered(self, route: Route, request: RequestFacts) -> Remembered | None:
        if request.conversation_id is None or not request.continues:
            return None
        return self.conversations.recall(request.principal.tenant, route.name, request.conversation_id)

    def drained(self, member_id: str) -> bool:
        """Whether the member stands by, so that no route sends it anything, and its last answer has ended."""
        fleet = self.ensemble.fleet
        idle = member_id not in self.in_flight.by_member
        return member_id in fleet and not fleet.is_active(member_id) and idle

    def _strategy(self, route: Route) -> Strategy | None:
        """The strategy of the route's most loaded pool; None while stopped or before the first."""
        return for_route(route, self.strategies) if self.running else None

    def _chosen(
        self,
        route: Route,
        request: RequestFacts,
        pressures: Mapping[str, MemberPressure],
        strategy: Strategy | None,
        remembered: Remembered | None,
        exclude: frozenset[str],
        control: bool,
        now_s: float,
    ) -> tuple[Choice, Judged]:
        """The core's choice that also may enter; members without room are left out of a second look."""
        for _ in route.members:
            choice = self.ensemble.choose(
                route, request, pressures, strategy, remembered=remembered, excluded=exclude, control=control
            )
            if isinstance(choice, Refusal):
                raise refused(choice)
            member = _member(route, choice.member_id)
            judged = self._judged(route, request, member, choice, pressures, now_s)
            if judged.admission.admitted:
                for passed in overflowed(choice, strategy, route.name):
                    self.demand.trouble(request, passed)
                return choice, judged
            if request.model != route.name or choice.reason in UNTOUCHED:
                break
            led = strategy is not None and bool(strategy.leads.get(route.name))
            exclude = exclude | _without_room(route, member, shared=led)
            if all(r.replica_id in exclude for m in route.members for r in m.replicas):
                break
        self.demand.trouble(request, member.member_id)
        raise no_room(request, judged.admission)

    def _judged(
        self,
        route: Route,
        request: RequestFacts,
        member: Member,
        choice: Choice,
        pressures: Mapping[str, MemberPressure],
        now_s: float,
    ) -> Judged:
        """Whether the member has room for the request; if so, its limits count it already."""
        # Stopped, nothing is refused that fits; nor where too little was measured to predict from.
        belief = self.ensemble.beliefs[member.member_id]
        known = self.running and belief.measured
        entry = Entry(
            self.ensemble.policy,
            request,
            pressures.get(member.member_id) or self._pressures.of_member(member.member_id, pool_of(member)),
            *self.places.limits(member),
            route.objectives,
            choice.expected if known else None,
        )
        in_flight = self.in_flight.by_member.get(member.member_id, 0)
        if member.limits is not NO_LIMITS:
            tokens = expected_tokens(request, belief.answer_tokens)
            entry = self.ensemble.terms.claim(entry, member, tokens, in_flight, now_s)
        judged = new(Judged, (entry, enter(entry)))
        if not judged.admission.admitted:
            self.ensemble.terms.unclaim(member, entry.tokens, in_flight)
            if self.ensemble.witness is not None:
                self.ensemble.witness(judged)
        return judged

    def _opened(
        self,
        route: Route,
        request: RequestFacts,
        member: Member,
        choice: Choice,
        let_in: Judged,
        strategy: Strategy | None,
        exclude: frozenset[str],
        now_s: float,
        assignment: Assignment,
    ) -> Dispatch:
        ensemble, counts = self.ensemble, self.in_flight
        member_id = member.member_id
        draw = ensemble.random.random() if len(member.replicas) > 1 else 0.0
        belief = ensemble.beliefs[member_id]
        replica_id = pick_replica(member, counts.by_replica, draw, exclude, belief.replicas, now_s)
        tokens = let_in.entry.tokens
        if replica_id is None:
            ensemble.terms.unclaim(member, tokens, counts.by_member.get(member_id, 0))
            raise none_left(request)
        pool_id = next(r.pool_id for r in member.replicas if r.replica_id == replica_id)
        left_alone = assignment.held
        untouched = choice.reason in UNTOUCHED or strategy is None or left_alone is not None
        tuning = parameters.tune(
            ensemble.policy, None if untouched else strategy, request, member, belief.answers
        )
        in_force = strategy or self.strategies.get(pool_id)
        dispatch = Dispatch(
            request=request,
            member_id=member_id,
            replica_id=replica_id,
            engine=ensemble.fleet.parts(member_id).engines[replica_id],
            strategy=StrategyName.BALANCED if in_force is None else in_force.name,
            reason=reason_of(choice, left_alone),
            propensity=choice.propensity,
            changes=tuning.changes,
            config_version=self.config_version,
            started_s=now_s,
            concurrency=counts.by_pool.get(pool_id, 0) + 1,
            work=choice.work,
            wait_s=0.0 if choice.expected is None else choice.expected.wait_s,
            read_s=_read_s(choice) if self.places.capacity.get(member_id) else None,
            beside=0.0 if choice.expected is None else choice.expected.beside,
            load_score=None if in_force is None else in_force.load_score,
            control=untouched,
            advised=assignment.advice,
        )
        if request.conversation_id is not None and choice.conversation is not None:
            self.conversations.keep(
                request.principal.tenant, route.name, request.conversation_id, choice.conversation
            )
        if ensemble.witness is not None:
            several = len(member.replicas) > 1
            held = counts.of_replicas(member) if several else NOTHING
            ensemble.witness(new(Sent, (dispatch, tuning, draw, held, let_in, assignment.enrolled)))
        owed_tokens = belief.answer_tokens * request.n
        counts.open(Open(dispatch, pool_id, owed_tokens, route.objectives, assignment, tokens))
        return dispatch

    # --- learning ---

    def finish(self, dispatch: Dispatch, outcome: Outcome) -> None:
        """The outcome is learned from and counted, once."""
        entry = self.in_flight.close(dispatch, outcome.finished_s)
        if entry is None:
            return
        heard = self._heard(dispatch, entry, outcome)
        self.ensemble.learn(heard)
        self.prompts.learn(dispatch.request, heard.prompt_tokens)
        self._charge(dispatch, heard, entry.expected_tokens)
        within = self.recorder.record(
            heard,
            strategy=dispatch.strategy,
            objectives=entry.objectives,
        )
        if within is False and heard.ending is Ending.SUCCEEDED:
            # Faults are no load: a faulty member leaves by its health.
            self.demand.trouble(dispatch.request, dispatch.member_id)
        belief = self.ensemble.beliefs.get(heard.member_id)
        quality = None if belief is None else belief.quality
        self.recorder.experiments.note(entry.assignment, heard, within, quality)
        if self.ensemble.witness is not None:
            self.ensemble.witness(new(Ended, (dispatch, heard, within)))
        if not heard.control:
            for listener in self._listeners:
                listener(heard.load_score, within)

    def _charge(self, dispatch: Dispatch, ended: Outcome, expected: int) -> None:
        """The attempt's tokens count in its member's limits, and its price as spent."""
        fleet = self.ensemble.fleet
        if dispatch.member_id not in fleet:
            return
        member = fleet.parts(dispatch.member_id).member
        left = self.in_flight.by_member.get(dispatch.member_id, 0)
        cost = self.ensemble.terms.ended(member, ended, expected, dispatch.started_s, left)
        if cost is not None:
            self.recorder.telemetry.count(names.SPENT, dispatch.member_id, by=cost)

    def _heard(self, dispatch: Dispatch, entry: Open, outcome: Outcome) -> Outcome:
        """The outcome with what was known at its dispatch, and with those that run beside it at its end."""
        counts = self.in_flight
        others = counts.by_pool.get(entry.pool_id, 0) - counts.by_member.get(dispatch.member_id, 0)
        beside = max(dispatch.beside, float(others))
        known = outcome.work is not None and outcome.control is dispatch.control
        if known and outcome.beside == beside:
            return outcome
        return replace(
            outcome,
            work=dispatch.work,
            wait_s=dispatch.wait_s,
            beside=beside,
            control=dispatch.control,
            load_score=dispatch.load_score,
        )


def _gateway_failed(status: int) -> RequestError:
    return RequestError("The gateway failed.", status=status, kind="server_error", code="gateway_failed")


def _free_of(remembered: Remembered | None, route: Route) -> bool:
    """Whether the default member may answer: a conversation elsewhere keeps its member, untouched."""
    return remembered is None or remembered.member_id == route.default_member


def _read_s(choice: Choice) -> float | None:
    """What reading the prompt is expected to take, without the wait for a place."""
    first_s, expected = choice.time_to_first_token_s, choice.expected
    return None if first_s is None or expected is None else max(0.0, first_s - expected.wait_s)


def _without_room(route: Route, member: Member, *, shared: bool) -> frozenset[str]:
    """The replicas that need no second look; with `shared` also those of others on the member's device.

    A device that has a lead and refuses is full: another engine beside it would only slow down both.
    """
    if not shared:
        return frozenset([replica.replica_id for replica in member.replicas])
    pools = {replica.pool_id for replica in member.replicas}
    return frozenset([r.replica_id for m in route.members for r in m.replicas if r.pool_id in pools])


def _member(route: Route, member_id: str) -> Member:
    return lineup_of(route).member(member_id)
