"""The decision core over a workload in virtual time: every request decided, answered and learned from.

The same functions decide here as in production; only the clock and the engines are models, so that a day
takes seconds and the same seed gives the same day.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random

from loadwise.decision import ensemble, outcome
from loadwise.decision.admission import in_time
from loadwise.decision.beliefs import Belief, initial_beliefs
from loadwise.decision.candidates import Refusal
from loadwise.decision.choices import Choice
from loadwise.decision.facts import (
    Ending,
    EngineReading,
    EnsembleStrategy,
    MemberPressure,
    Outcome,
    Policy,
    RequestFacts,
    Route,
    ServiceReading,
    StrategyName,
)
from loadwise.decision.health import HealthChange
from loadwise.decision.lead import Asked, Crew, LeadState, overflowed
from loadwise.decision.step import Decision, Observation, State, step
from loadwise.decision.surge import NO_SURGE, overflows, poured
from loadwise.simulation.queueing import Device, Job, MemberModel, Sharing
from loadwise.simulation.workloads import Arrival

# How long an answer takes that fails.
FAILURE_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is simulated: a route over member models on one shared device; `fixed` names one member always."""

    route: Route
    members: Mapping[str, MemberModel]
    policy: Policy = field(default_factory=Policy)
    sharing: Sharing = "interleaved"
    # Requests that may wait per member, beside those that run.
    queue_limit: int = 128
    fixed: str | None = None
    # Requests that arrive before are served and learned from, but not counted in the result.
    judged_from_s: float = 0.0
    seed: int = 0
    probe_interval_s: float = 1.0


@dataclass(slots=True)
class Result:
    """What happened: counts over all requests, and changes over time."""

    requests: int = 0
    within_objectives: int = 0
    failed: int = 0
    # Fits no member; and no room in time.
    refused: int = 0
    shed: int = 0
    duration_s: float = 0.0
    by_member: Counter[str] = field(default_factory=Counter)
    by_reason: Counter[str] = field(default_factory=Counter)
    # Summed quality of the answers within objectives, those of unknown quality left out.
    quality: float = 0.0
    # (time, strategy) at each change, and (time, change) of members' health.
    strategies: list[tuple[float, StrategyName]] = field(default_factory=list)
    health: list[tuple[float, HealthChange]] = field(default_factory=list)

    @property
    def within_fraction(self) -> float:
        """The share of requests within objectives (0 without requests)."""
        return self.within_objectives / self.requests if self.requests else 0.0

    def share(self, member_id: str) -> float:
        """The share of requests that a member answered."""
        return self.by_member[member_id] / self.requests if self.requests else 0.0


def simulate(scenario: Scenario, workload: Iterable[Arrival]) -> Result:
    """The result of a workload in order of time; seconds and tokens as `Arrival` has them."""
    run = Run(scenario)
    for arrival in workload:
        run.until(arrival.t_s)
        run.arrive(arrival)
    run.drain()
    return run.result


class Run:
    """One simulation on its way: beliefs, strategies and leads last from one window to the next."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.device = Device(scenario.members, scenario.sharing)
        self.random = Random(scenario.seed)
        self.beliefs: dict[str, Belief] = initial_beliefs(scenario.route, 0.0)
        self.capabilities = {m.member_id: m for m in scenario.route.members}
        self.state = State()
        self.decision: Decision | None = None
        self.result, self.uncounted = Result(), Result()
        self.choices: dict[int, tuple[Choice, int]] = {}
        self.first_tokens: list[float] = []
        self.next_probe_s = 0.0
        self.jobs = self.asked = self.prompt_tokens = 0
        self.troubled: Counter[str] = Counter()
        self.surge = NO_SURGE

    def window(self, model: str, workload: Iterable[Arrival], rest_s: float = 0.0) -> Result:
        """What became of a workload for the route or a member that begins now; then `rest_s` of quiet."""
        self.scenario = replace(self.scenario, fixed=None if model == self.scenario.route.name else model)
        self.result, starts_s = Result(), self.device.now_s
        for arrival in workload:
            now = replace(arrival, t_s=starts_s + arrival.t_s)
            self.until(now.t_s)
            self.arrive(now)
        self.drain()
        self.until(self.device.now_s + rest_s)
        return self.result

    def _result(self, arrived_s: float) -> Result:
        """Where a request is counted."""
        return self.result if arrived_s >= self.scenario.judged_from_s else self.uncounted

    def until(self, t_s: float) -> None:
        """Everything that happens before `t_s`, the loop's steps included."""
        while self.next_probe_s <= t_s:
            self._advance(self.next_probe_s)
            self._probe(self.next_probe_s)
            self.next_probe_s += self.scenario.probe_interval_s
        self._advance(t_s)

    def drain(self) -> None:
        """Everything that is still in flight ends, at most an hour later."""
        end_s = self.device.now_s + 3600.0
        while self.choices and self.device.now_s < end_s:
            self.until(self.next_probe_s)
        self.result.duration_s = self.device.now_s

    def arrive(self, arrival: Arrival) -> None:
        """Decides a request and hands it to its member."""
        result, scenario = self._result(arrival.t_s), self.scenario
        result.requests += 1
        self.jobs += 1
        if scenario.fixed is None:
            self.asked += 1
            self.prompt_tokens += arrival.input_tokens
            self._pour(arrival.t_s)
        chosen = self._choose(arrival)
        if isinstance(chosen, Choice) and not self._admitted(chosen) and not self._led_or_fixed():
            other = self._choose(arrival, frozenset({chosen.member_id}))
            chosen = other if isinstance(other, Choice) else chosen
        if isinstance(chosen, Refusal):
            result.refused += 1
            return
        if not self._admitted(chosen):
            result.shed += 1
            self._trouble(chosen.member_id)
            return
        strategy = self.decision.worst.strategy if self.decision else None
        self._trouble(*overflowed(chosen, strategy, scenario.route.name))
        result.by_member[chosen.member_id] += 1
        result.by_reason[chosen.reason] += 1
        pool_in_flight = sum(self.device.in_flight(name) for name in scenario.members) + 1
        if scenario.members[chosen.member_id].fails_at(arrival.t_s):
            self._fail(arrival, chosen, pool_in_flight)
            return
        job = Job(self.jobs, chosen.member_id, arrival.input_tokens, arrival.output_tokens, arrival.t_s)
        self.choices[job.job_id] = chosen, pool_in_flight
        self.device.submit(job)

    def _pour(self, now_s: float) -> None:
        """The request counts towards a surge, which is looked at once."""
        if not self._led:
            return
        led = self.state.leads.get((self.scenario.route.name, "local"), LeadState())
        self.surge = poured(self.surge, led.limit, now_s)
        if overflows(self.surge, led.limit):
            self._probe(now_s)

    def _trouble(self, *member_ids: str) -> None:
        # What a client named was not asked of the route.
        if self.scenario.fixed is None:
            self.troubled.update(member_ids)

    def _led_or_fixed(self) -> bool:
        """Whether a refusal by one member is one by all."""
        leads = self.decision.worst.strategy.leads if self.decision else {}
        return bool(self.scenario.fixed or leads.get(self.scenario.route.name))

    def _choose(self, arrival: Arrival, excluded: frozenset[str] = frozenset()) -> Choice | Refusal:
        scenario = self.scenario
        request = RequestFacts(
            request_id=str(self.jobs),
            model=scenario.fixed or scenario.route.name,
            prompt_tokens=arrival.input_tokens,
        )
        return ensemble.select(
            scenario.policy,
            scenario.route,
            request,
            self.beliefs,
            self._pressures(),
            self.decision.worst.strategy if self.decision else None,
            self.random.random(),
            arrival.t_s,
            excluded=excluded,
        )

    def _admitted(self, chosen: Choice) -> bool:
        model = self.scenario.members[chosen.member_id]
        if self.device.in_flight(chosen.member_id) >= model.places + self.scenario.queue_limit:
            return False
        if not self.scenario.policy.refuse_late or not self.beliefs[chosen.member_id].measured:
            return True
        expected = chosen.expected
        return expected is None or in_time(self.scenario.route.objectives, expected).admitted

    def _pressures(self) -> dict[str, MemberPressure]:
        flights = {name: self.device.in_flight(name) for name in self.scenario.members}
        total = sum(flights.values())
        return {
            name: MemberPressure(
                member_id=name,
                in_flight=count,
                pool_in_flight=total,
                capacity_requests=self.scenario.members[name].places,
                waiting_requests=self.device.waiting(name),
            )
            for name, count in flights.items()
        }

    def _advance(self, t_s: float) -> None:
        for event in self.device.advance(t_s):
            if event.finished:
                self._finish(event.job)
            else:
                self.first_tokens.append(event.at_s - event.job.arrived_s)

    def _finish(self, job: Job) -> None:
        chosen, pool_in_flight = self.choices.pop(job.job_id)
        finished_s, first_s = job.finished_s or 0.0, job.first_token_s or 0.0
        others = sum(self.device.in_flight(name) for name in self.scenario.members if name != job.member_id)
        self._learn(
            Outcome(
                request_id=str(job.job_id),
                member_id=job.member_id,
                replica_id=job.member_id,
                ending=Ending.SUCCEEDED,
                finished_s=finished_s,
                total_s=finished_s - job.arrived_s,
                time_to_first_token_s=first_s - job.arrived_s,
                prompt_tokens=job.prompt_tokens,
                output_tokens=job.output_tokens,
                finish_reason="stop",
                concurrency=pool_in_flight,
                work=chosen.work,
                wait_s=chosen.expected.wait_s if chosen.expected else 0.0,
                beside=max(chosen.expected.beside if chosen.expected else 0.0, float(others)),
                load_score=self.decision.worst.score.value if self.decision else None,
            )
        )

    def _fail(self, arrival: Arrival, chosen: Choice, pool_in_flight: int) -> None:
        self._result(arrival.t_s).failed += 1
        self._learn(
            Outcome(
                request_id=str(self.jobs),
                member_id=chosen.member_id,
                replica_id=chosen.member_id,
                ending=Ending.FAILED,
                finished_s=arrival.t_s + FAILURE_S,
                total_s=FAILURE_S,
                status=500,
                concurrency=pool_in_flight,
                work=chosen.work,
            )
        )

    def _learn(self, ended: Outcome) -> None:
        member_id = ended.member_id
        if outcome.within_objectives(self.scenario.route.objectives, ended):
            result = self._result(ended.finished_s - (ended.total_s or 0.0))
            result.within_objectives += 1
            result.quality += self.beliefs[member_id].quality or 0.0
        elif ended.ending is Ending.SUCCEEDED:
            self._trouble(member_id)
        self.beliefs[member_id] = outcome.learn(self.scenario.policy, self.beliefs[member_id], ended)

    def _probe(self, now_s: float) -> None:
        """One turn of the loop: readings, step, and what it decided applied."""
        before = self.decision.worst.strategy.name if self.decision else None
        route = self.scenario.route.name
        self.state, self.decision = step(self.scenario.policy, self.state, self._observation(now_s))
        self.beliefs = dict(self.decision.beliefs[route])
        self.result.health += [(now_s, change) for change in self.decision.health[route]]
        after = self.decision.worst.strategy.name
        if after is not before:
            self.result.strategies.append((now_s, after))

    def _observation(self, now_s: float) -> Observation:
        readings = [
            EngineReading(
                replica_id=name,
                read_s=now_s,
                running_requests=self.device.in_flight(name) - self.device.waiting(name),
                waiting_requests=self.device.waiting(name),
                capacity_requests=model.places,
            )
            for name, model in self.scenario.members.items()
        ]
        recent, self.first_tokens = self.first_tokens, []
        first_s = sum(recent) / len(recent) if recent else None
        service = ServiceReading(read_s=now_s, time_to_first_token_s=first_s)
        return Observation(
            now_s=now_s,
            engines={"local": readings},
            services={"local": service},
            beliefs={self.scenario.route.name: self.beliefs},
            crews=(self._crew(),) if self._led else (),
        )

    @property
    def _led(self) -> bool:
        return self.scenario.route.strategy is EnsembleStrategy.ADAPTIVE

    def _crew(self) -> Crew:
        return Crew(
            route=self.scenario.route.name,
            pool_id="local",
            places={name: self.scenario.members[name].places for name in self.capabilities},
            default_member=self.scenario.route.default_member,
            asked=Asked(
                requests=self.asked,
                prompt_tokens=float(self.prompt_tokens),
                troubled=dict(self.troubled),
                surge=self.surge,
            ),
        )


def fixed(scenario: Scenario, member_id: str) -> Scenario:
    """The same scenario with every request answered by one member."""
    return replace(scenario, fixed=member_id)
