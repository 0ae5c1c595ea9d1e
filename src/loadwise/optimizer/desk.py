"""One process's side of the optimizer, on an engine's own event loop: it decides by a plan and takes notes.

Everything here is called where tokens are served. Nothing waits, no exception leaves, and what is noted
is read elsewhere: queues are bounded, and what no longer fits is counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from random import Random
from typing import Any, Final

from loadwise.decision import ensemble
from loadwise.decision.candidates import Refusal
from loadwise.decision.choices import Choice
from loadwise.decision.facts import Member, Outcome, RequestFacts, StrategyName
from loadwise.decision.lineup import lineup_of
from loadwise.decision.parameters import Tuning, tune
from loadwise.decision.question import UNTOUCHED
from loadwise.decision.quick import fact
from loadwise.decision.strategy import Strategy
from loadwise.logs import get_logger
from loadwise.optimizer.assignment import Held, reason_of, unit_of
from loadwise.optimizer.plan import Plan, unloaded
from loadwise.optimizer.shares import NO_PART, Part
from loadwise.ports import Advice, Clock, Dispatch, Engine, Enrolled

log = get_logger(__name__)
# Errors of our own after which loadwise switches itself off.
ERRORS_ALLOWED: Final = 3
# A plan that was not renewed for so long is no longer followed.
PLAN_LASTS_S: Final = 3.0
# Notes and statistics that wait to be read.
KEPT: Final = 16_384


@fact(frozen=True, slots=True)
class Grounds:
    """What a request was decided by: a plan and chance; and what that came to."""

    # `Plan.known_by`.
    plan: tuple[int, float]
    draw: float
    choice: Choice
    tuning: Tuning
    # Why it is left alone, and the comparisons that it takes part in.
    held: Held | None = None
    enrolled: Enrolled | None = None


@fact(frozen=True, slots=True)
class Began:
    """A request was decided, in so many seconds."""

    number: int
    dispatch: Dispatch
    decision_s: float
    grounds: Grounds


@fact(frozen=True, slots=True)
class Ended:
    """A request that had begun is over; how it went is worked out by whoever reads this."""

    number: int
    outcome: Callable[[], Outcome]


@fact(frozen=True, slots=True)
class Heard:
    """One record of the engine's statistics, as the engine made it."""

    core: int
    scheduler: Any
    iteration: Any
    heard_s: float


class Desk:
    """Decides requests by the latest plan and keeps notes of how they went."""

    def __init__(self, clock: Clock, engine: Engine, *, random: Random | None = None) -> None:
        self._clock = clock
        self._engine = engine
        self._random = random or Random()
        # Replaced as a whole by whoever plans; None: requests pass untouched and unseen.
        self.plan: Plan | None = None
        self.notes: deque[Began | Ended] = deque(maxlen=KEPT)
        self.heard: deque[Heard] = deque(maxlen=KEPT)
        self.dropped = 0
        # Why loadwise switched itself off; None while it did not.
        self.off: str | None = None
        self.errors = 0
        self._numbers = 0
        # The strategy that members are selected by, of the plan followed last.
        self._unloaded: tuple[Plan, Strategy | None] | None = None
        self._open: dict[int, int] = {}
        self._silent = False

    # --- called by the engine's server ---

    @property
    def awake(self) -> bool:
        """Whether requests are decided here."""
        return self.followed is not None

    @property
    def followed(self) -> Plan | None:
        """The plan that requests are decided by now; None while there is no fresh one."""
        plan = self.plan
        if plan is None or self.off is not None:
            return None
        fresh = self._clock.monotonic_s() - plan.made_s <= PLAN_LASTS_S
        if fresh is self._silent:
            self._silent = not fresh
            log.warning("plan_is_followed" if fresh else "plan_is_stale", serial=plan.serial)
        return plan if fresh else None

    def dispatch(self, request: RequestFacts) -> Dispatch | None:
        """How the request is served; None where the engine shall serve it as if loadwise were not there."""
        plan = self.followed
        if plan is None:
            return None
        began_s = self._clock.monotonic_s()
        draw = 0.0 if len(plan.route.members) == 1 else self._draw(request)
        part = _part(plan, request)
        choice = self._choice(plan, request, draw, began_s, control=part.held is not None)
        if isinstance(choice, Refusal):
            # The engine says itself what it cannot do.
            return None
        tuning = _tuned(plan, request, choice, part.held)
        dispatch = self._decided(plan, request, choice, tuning, began_s, part.held)
        if part.held is Held.ADVISORY:
            dispatch = replace(dispatch, advised=self._advice(plan, request, draw, began_s))
        self._numbers = number = self._numbers + 1
        self._open[id(dispatch)] = number
        grounds = Grounds(plan.known_by, draw, choice, tuning, part.held, part.enrolled)
        self._note(Began(number, dispatch, self._clock.monotonic_s() - began_s, grounds))
        return dispatch

    def finish(self, dispatch: Dispatch, outcome: Callable[[], Outcome]) -> None:
        """The request is over; a second call for the same dispatch changes nothing."""
        number = self._open.pop(id(dispatch), None)
        if number is not None:
            self._note(Ended(number, outcome))

    def record(self, core: int, scheduler: Any, iteration: Any) -> None:
        """The engine's statistics of one iteration wait to be read."""
        if self.off is None:
            if len(self.heard) == KEPT:
                self.dropped += 1
            self.heard.append(Heard(core, scheduler, iteration, self._clock.monotonic_s()))

    def failed(self, where: str, error: BaseException) -> None:
        """An error of our own is counted and told of; after three loadwise is off, and says so."""
        self.errors += 1
        log.error("loadwise_failed", where=where, errors=self.errors, error=repr(error), exc_info=error)
        if self.errors >= ERRORS_ALLOWED and self.off is None:
            self.off = f"{ERRORS_ALLOWED} errors, the last in {where}: {error!r:.200}"
            self.plan = None
            log.error(
                "loadwise_switched_itself_off",
                reason=self.off,
                remedy="Serving goes on untouched. Restart the server to switch loadwise on again.",
            )

    # --- called by whoever reads the notes ---

    @property
    def open_from(self) -> int:
        """The lowest number among requests that have not ended; all below have."""
        try:
            return next(iter(self._open.values()))
        except (StopIteration, RuntimeError):
            # None is open, or one began or ended while we looked.
            return 0

    def take_notes(self) -> list[Began | Ended]:
        """The notes that wait, oldest first; they are gone from here."""
        return list(_drained(self.notes.popleft))

    def take_statistics(self) -> list[Heard]:
        """The statistics that wait, oldest first; they are gone from here."""
        return list(_drained(self.heard.popleft))

    def _note(self, note: Began | Ended) -> None:
        if len(self.notes) == KEPT:
            self.dropped += 1
        self.notes.append(note)

    def _advice(self, plan: Plan, request: RequestFacts, draw: float, now_s: float) -> Advice | None:
        """What would have been done, were it not only told."""
        choice = self._choice(plan, request, draw, now_s, control=False)
        if isinstance(choice, Refusal):
            return None
        tuning = _tuned(plan, request, choice, None)
        return Advice(choice.member_id, choice.reason.value, dict(tuning.changes))

    def _choice(
        self, plan: Plan, request: RequestFacts, draw: float, now_s: float, *, control: bool
    ) -> Choice | Refusal:
        return ensemble.select(
            plan.policy,
            plan.route,
            request,
            plan.beliefs,
            # Members of one engine share its queue: pressure says nothing for or against any of them.
            {},
            self._selecting(plan),
            draw,
            now_s,
            control=control,
        )

    def _selecting(self, plan: Plan) -> Strategy | None:
        """What members are selected by under a plan: worked out once per plan."""
        known = self._unloaded
        if known is None or known[0] is not plan:
            known = self._unloaded = plan, unloaded(plan)
        return known[1]

    def _draw(self, request: RequestFacts) -> float:
        """Chance; the same for one conversation in every process, so that it keeps its member."""
        if request.conversation_id is None:
            return self._random.random()
        digest = blake2b(request.conversation_id.encode(), digest_size=7).digest()
        return int.from_bytes(digest) / 2**56

    def _decided(
        self,
        plan: Plan,
        request: RequestFacts,
        choice: Choice,
        tuning: Tuning,
        now_s: float,
        held: Held | None,
    ) -> Dispatch:
        member = _member(plan, choice.member_id)
        in_force = plan.in_force
        return Dispatch(
            request=request,
            member_id=member.member_id,
            replica_id=member.replicas[0].replica_id,
            engine=self._engine,
            strategy=StrategyName.BALANCED if in_force is None else in_force.name,
            reason=reason_of(choice, held),
            propensity=choice.propensity,
            changes=tuning.changes,
            config_version=plan.config_version,
            started_s=now_s,
            concurrency=len(self._open) + 1,
            work=choice.work,
            load_score=None if in_force is None else in_force.load_score,
            control=_untouched(plan, choice, held),
        )


def _part(plan: Plan, request: RequestFacts) -> Part:
    """What experiments and rollout make of a request; nothing while nothing is optimised."""
    if plan.strategy is None or request.off or not request.principal.optimize:
        return NO_PART
    block = Part(Held.CONTROL_BLOCK) if plan.control else NO_PART
    unit = unit_of(request)
    if request.model != plan.route.name or plan.shares is None or not unit:
        return block
    part = plan.shares.part(unit)
    # Unoptimised blocks say nothing of conversations and shares.
    return block if plan.control and part.held is not Held.ADVISORY else part


def _tuned(plan: Plan, request: RequestFacts, choice: Choice, held: Held | None) -> Tuning:
    member = _member(plan, choice.member_id)
    strategy = None if _untouched(plan, choice, held) else plan.strategy
    return tune(plan.policy, strategy, request, member, plan.beliefs[member.member_id].answers)


def _untouched(plan: Plan, choice: Choice, held: Held | None) -> bool:
    return choice.reason in UNTOUCHED or plan.strategy is None or held is not None


def _member(plan: Plan, member_id: str) -> Member:
    return lineup_of(plan.route).member(member_id)


def _drained(pop: Callable[[], Any]) -> Any:
    # At most as many as can wait: the other side may add while we read.
    for _ in range(KEPT):
        try:
            yield pop()
        except IndexError:
            return
