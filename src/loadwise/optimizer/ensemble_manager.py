"""The ensemble: its members, what is believed of each, and which of them answers a request."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final

from loadwise.clock import SystemClock
from loadwise.decision import ensemble, health, outcome
from loadwise.decision import strategy as strategies
from loadwise.decision.beliefs import Belief, Health, initial_beliefs, places_of
from loadwise.decision.candidates import Refusal
from loadwise.decision.capacity import busy_s
from loadwise.decision.choices import Choice, Remembered
from loadwise.decision.facts import Ending, MemberPressure, Outcome, RequestFacts, Route
from loadwise.decision.health import HealthChange
from loadwise.decision.question import Question
from loadwise.decision.quick import new
from loadwise.decision.replicas import outs
from loadwise.decision.strategy import Strategy, StrategyState
from loadwise.errors import CapacityError, ConfigurationError
from loadwise.logs import get_logger
from loadwise.optimizer import abilities
from loadwise.optimizer.context import facts_of, load_hint
from loadwise.optimizer.fleet import AUTO, Fleet, MemberParts, single
from loadwise.optimizer.selection import Selection
from loadwise.optimizer.terms import Terms
from loadwise.ports import Clock, JsonObject
from loadwise.settings import OptimizationConfig
from loadwise.telemetry.journal.events import Chose, Event, Learned, Reviewed, Witness

log = get_logger(__name__)
# The prompt by which members' costs are compared.
COMPARED_PROMPT_TOKENS: Final = 256.0
# Conversations that are remembered.
CONVERSATIONS: Final = 10_000


class ModelEnsembleManager:
    """Selects among members by what is believed of them, and learns from what happens.

    `strategy` gives the strategy in force; without it, and without a load in the request's context,
    load counts as unknown. `random` draws where a strategy leaves it to chance.
    """

    def __init__(
        self,
        config: OptimizationConfig | None = None,
        *,
        fleet: Fleet | None = None,
        strategy: Callable[[], Strategy | None] | None = None,
        random: Random | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.config = config or OptimizationConfig()
        self.policy = self.config.policy()
        self.fleet = fleet or Fleet(self.config)
        self.random = random or Random()
        self.beliefs: dict[str, Belief] = {}
        # Hears of every choice and of every lesson; None where nobody listens.
        self.witness: Witness | None = None
        # Hears of what changes between requests.
        self.listener: Witness | None = None
        # Prices, limits and tags, and what came of them.
        self.terms = Terms()
        self._clock: Clock = clock or SystemClock()
        self._strategy = strategy or (lambda: None)
        self._conversations: dict[str, Remembered] = {}
        self._failures: dict[str, deque[bool]] = {}
        # Members with answers whose tokens were counted.
        self._counted: set[str] = set()
        self._selected: deque[str] = deque(maxlen=self.config.metrics_history_size)
        self.know_members()

    # --- members ---

    def know_members(self) -> None:
        """Every member of every route has a belief; those of members that left are forgotten."""
        now_s = self._clock.monotonic_s()
        everyone = self.fleet.everyone()
        fresh = initial_beliefs(everyone, now_s) if everyone is not None else {}
        self.beliefs = {name: self.beliefs.get(name, belief) for name, belief in fresh.items()}
        size = self.config.metrics_history_size
        self._counted &= set(self.fleet)
        self._failures = {name: deque(self._failures.get(name, ()), maxlen=size) for name in self.fleet}

    def add_model_to_ensemble(
        self, model_id: str, model: Any, weight: float = 1.0, quality: float | None = None
    ) -> None:
        """The model is an active member; quality is 0..1, or None for unknown.

        Raises `CapacityError` when `max_ensemble_size` members are active, `ConfigurationError` for
        a weight that is not above 0, a quality outside 0..1 or a name that is taken.
        """
        if not 0.0 < weight < float("inf"):
            raise ConfigurationError(f"weight must be above 0 and finite, not {weight!r}.", field="weight")
        if quality is not None and not 0.0 <= quality <= 1.0:
            raise ConfigurationError(
                f"quality must lie in 0..1 or be None, not {quality!r}.", field="quality"
            )
        if model_id not in self.fleet:
            self.fleet.require_place()
        self.fleet.add(MemberParts(member=single(model_id, quality=quality, weight=weight), model=model))
        self.know_members()

    def remove_model(self, model_id: str) -> Any:
        """The model is no member any more; it is returned. Raises `UnknownNameError`."""
        parts = self.fleet.remove(model_id)
        self._conversations = {
            name: kept for name, kept in self._conversations.items() if kept.member_id != model_id
        }
        self.know_members()
        return parts.model

    def configure(self, config: OptimizationConfig) -> None:
        """Selects by another configuration; a smaller size retires the members of lowest utility."""
        self.config, self.policy = config, config.policy()
        self.fleet.configure(config, self.utility)
        self._selected = deque(self._selected, maxlen=config.metrics_history_size)
        self.know_members()

    def utility(self, model_id: str) -> float:
        """How likely the member would be chosen now by its expected utility: larger is better."""
        belief = self.beliefs.get(model_id)
        if belief is None:
            return 0.0
        within = belief.within_fraction
        return (belief.quality or 0.5) * (1.0 if within is None else within) * (1.0 - belief.error_rate)

    # --- selecting ---

    def select_model_for_request(self, context: Any = None, *, control: bool = False) -> Selection:
        """The member that answers; `context` is what `create_optimized_request_context` makes, or None.

        `control` leaves a request to the default member, unless its conversation has another.

        Raises `CapacityError` while there is no member, `ConfigurationError` where none can answer.
        """
        route = self.fleet.routes.get(AUTO)
        if route is None:
            raise CapacityError("The ensemble is empty: add a model with add_model_to_ensemble.")
        request = facts_of(context, self.fleet)
        remembered = self._conversations.get(request.conversation_id or "")
        strategy = self._strategy_for(load_hint(context))
        free = remembered is None or remembered.member_id == route.default_member
        choice = self.choose(route, request, {}, strategy, remembered=remembered, control=control and free)
        if isinstance(choice, Refusal):
            raise ConfigurationError(choice.message, field=choice.param)
        self._remember(request, choice)
        return Selection(
            model_id=choice.member_id,
            model=self.fleet.parts(choice.member_id).model,
            propensity=choice.propensity,
            reason=choice.reason,
        )

    def choose(
        self,
        route: Route,
        request: RequestFacts,
        pressures: Mapping[str, MemberPressure],
        strategy: Strategy | None,
        *,
        remembered: Remembered | None = None,
        excluded: frozenset[str] = frozenset(),
        control: bool = False,
    ) -> Choice | Refusal:
        """The core's choice with a draw of this manager's chance."""
        draw, now_s = self.random.random(), self._clock.monotonic_s()
        choice = ensemble.select(
            self.policy,
            route,
            request,
            self.beliefs,
            pressures,
            strategy,
            draw,
            now_s,
            remembered=remembered,
            excluded=excluded,
            control=control,
        )
        if self.witness is not None:
            # Copies: beliefs are replaced in their mapping by every outcome.
            question = new(Question, (
                self.policy, route, request, tuple(self.beliefs.values()), tuple(pressures.values()),
                strategy, draw, now_s, remembered, excluded, control,
            ))  # fmt: skip
            self.witness(new(Chose, (question, choice)))
        if isinstance(choice, Choice):
            self._selected.append(choice.member_id)
        return choice

    def _strategy_for(self, hint: float | None) -> Strategy:
        current = self._strategy() if hint is None else None
        if current is not None:
            return current
        return strategies.choose(self.policy, StrategyState(), hint, self._clock.monotonic_s())[1]

    def _remember(self, request: RequestFacts, choice: Choice) -> None:
        if request.conversation_id is None or choice.conversation is None:
            return
        self._conversations[request.conversation_id] = choice.conversation
        if len(self._conversations) > CONVERSATIONS:
            del self._conversations[next(iter(self._conversations))]

    # --- learning ---

    def update_model_performance(
        self,
        model_id: str,
        latency_ms: float,
        success: bool,
        *,
        output_tokens: int | None = None,
        prompt_tokens: int | None = None,
        time_to_first_token_ms: float | None = None,
    ) -> None:
        """The member's belief has learned from a request; without token counts it counts less.

        Raises `UnknownNameError`, or `ConfigurationError` for a latency that is negative or no number.
        """
        self.fleet.parts(model_id)
        if not 0.0 <= latency_ms < float("inf"):
            raise ConfigurationError(
                f"latency_ms must be at least 0, not {latency_ms!r}.", field="latency_ms"
            )
        first_ms = time_to_first_token_ms
        self.learn(
            Outcome(
                request_id="",
                member_id=model_id,
                replica_id=f"{model_id}/0",
                ending=Ending.SUCCEEDED if success else Ending.FAILED,
                finished_s=self._clock.monotonic_s(),
                total_s=latency_ms / 1000.0,
                time_to_first_token_s=None if first_ms is None else first_ms / 1000.0,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
            )
        )

    def learn(self, ended: Outcome) -> None:
        """The belief of the outcome's member is the next one; failures may take it out."""
        belief = self.beliefs.get(ended.member_id)
        if belief is None:
            return
        learned = outcome.learn(self.policy, belief, ended)
        if self.witness is not None:
            self.witness(new(Learned, (self.policy, ended, belief, learned)))
        if learned is belief:
            return
        self.beliefs[ended.member_id] = learned
        if ended.ending is Ending.SUCCEEDED and (ended.output_tokens or 0) > 1:
            self._counted.add(ended.member_id)
        self._failures[ended.member_id].append(ended.ending is Ending.FAILED)
        unwell = learned.health is not Health.HEALTHY or learned.replicas is not belief.replicas
        if ended.ending is Ending.FAILED or unwell:
            self.review()

    def resume(self, belief: Belief) -> None:
        """The member is believed to be what an earlier process found."""
        self.beliefs[belief.member_id] = belief
        if belief.output_line.weight > 0.0:
            self._counted.add(belief.member_id)

    def review(self) -> list[HealthChange]:
        """Members that failed are out and those that recovered are back, on every route."""
        now_s = self._clock.monotonic_s()
        found: list[HealthChange] = []
        for route in self.fleet.routes.values():
            members = {m.member_id: self.beliefs[m.member_id] for m in route.members}
            for change in health.review(self.policy, members, now_s):
                self.beliefs[change.member_id] = change.belief
                found.append(change)
                log.warning(
                    "member_health", member=change.subject, health=change.health, reason=change.reason
                )
        if found:
            self.tell(Reviewed(now_s, tuple(found)))
        return found

    def tell(self, event: Event) -> None:
        """Whoever listens hears of what happened between requests."""
        for listener in (self.witness, self.listener):
            if listener is not None:
                listener(event)

    # --- showing ---

    def members_out(self) -> list[str]:
        """Active members that failures took out."""
        return [name for name in self.fleet.active() if self.beliefs[name].health is Health.OUT]

    def replicas_out(self) -> list[str]:
        """Replicas that are out while others of their members serve."""
        return [name for member in self.fleet.active() for name in outs(self.beliefs[member].replicas)]

    def selection_distribution(self) -> dict[str, float]:
        """Each member's share of the last `metrics_history_size` choices; empty before the first."""
        return {name: count / len(self._selected) for name, count in Counter(self._selected).items()}

    def get_ensemble_status(self) -> JsonObject:
        """Strategy, size, active members with what was learned of them, and who stands by."""
        route = self.fleet.routes.get(AUTO)
        return {
            "strategy": (route.strategy if route else self.config.ensemble_strategy).value,
            "max_ensemble_size": self.config.max_ensemble_size,
            "default_member": route.default_member if route else None,
            "models": self.shown(),
            "standby": list(self.fleet.standby()),
            "selection_distribution": self.selection_distribution(),
        }

    def shown(self) -> list[JsonObject]:
        """Every active member with what was learned of it."""
        route = self.fleet.routes.get(AUTO)
        return [self._shown(name, route) for name in self.fleet.active()]

    def _relative_cost(self, model_id: str, route: Route | None) -> float | None:
        """Measured device time per request over the cheapest member's; None before it is measured."""
        members = () if route is None else route.members
        busy = {
            m.member_id: busy_s(self.beliefs[m.member_id], places_of(m), COMPARED_PROMPT_TOKENS)
            for m in members
            if self.beliefs[m.member_id].measured
        }
        return busy[model_id] / min(busy.values()) if model_id in busy else None

    def _shown(self, model_id: str, route: Route | None) -> JsonObject:
        parts, belief = self.fleet.parts(model_id), self.beliefs[model_id]
        member = parts.member
        failures = self._failures[model_id]
        return {
            "model_id": model_id,
            "weight": member.weight,
            "quality": belief.quality,
            "error_rate": failures.count(True) / len(failures) if failures else 0.0,
            "recent_error_rate": belief.error_rate if belief.outcomes else None,
            "outcomes": belief.outcomes,
            "avg_latency_ms": belief.latency_ms,
            "time_per_output_token_ms": 1000.0 * belief.output_fit.base
            if model_id in self._counted
            else None,
            "within_objectives_fraction": belief.within_fraction,
            "relative_cost": self._relative_cost(model_id, route),
            "trend": belief.trend,
            "health": belief.health.value,
            "replicas": {name: each.health.value for name, each in belief.replicas.items()},
            "default": route is not None and route.default_member == model_id,
            "standby": False,
            "engine": parts.engine_kind,
            "engine_reason": parts.engine_reason,
            "abilities": abilities.shown(member.capabilities),
            **self.terms.shown(member, self._clock.monotonic_s()),
        }
