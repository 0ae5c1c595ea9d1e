"""What became of requests: the history, the recent window, the counters, the experiments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from loadwise.clock import SystemClock
from loadwise.decision import grading
from loadwise.decision.facts import Ending, Objectives, Outcome, ServiceReading, StrategyName
from loadwise.decision.fault import Fault, fault_of, ours
from loadwise.decision.improvement import Improvement
from loadwise.decision.outcome import within_objectives
from loadwise.optimizer import entries
from loadwise.optimizer.experiments import Experiments
from loadwise.ports import Clock
from loadwise.settings import OptimizationConfig
from loadwise.telemetry.history import History
from loadwise.telemetry.monitoring import Monitoring
from loadwise.telemetry.objectives import ObjectiveCounts
from loadwise.telemetry.prometheus import TOGETHER, Telemetry
from loadwise.telemetry.timeline import Timeline
from loadwise.telemetry.window import ServiceWindow

NO_ROOM: Final = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The history's figures; None while there is nothing to judge."""

    requests: int
    success_rate: float | None = None
    avg_latency_ms: float | None = None
    within_objectives_fraction: float | None = None
    grade: str | None = None
    # Of `requests`, those that were turned away before an engine was asked.
    refused: int = 0


class _Told(NamedTuple):
    """A request that ended, with when it did: monotonic seconds, and wall time."""

    outcome: Outcome
    within: bool | None
    strategy: StrategyName | None
    objectives: Objectives
    now_s: float
    wall_s: float


class Recorder:
    """Hears each outcome once and keeps what reports, grades, alerts and scrapes need."""

    def __init__(
        self, config: OptimizationConfig, telemetry: Telemetry | None = None, clock: Clock | None = None
    ) -> None:
        self._clock: Clock = clock or SystemClock()
        self.telemetry = telemetry or Telemetry()
        self.window = ServiceWindow(size=config.metrics_history_size)
        self._timeline = Timeline()
        self._history = entries.history(
            config.metrics_history_size, enabled=config.enable_performance_tracking
        )
        self._objectives = Objectives(**config.objectives.model_dump())
        self.experiments = Experiments(config, self._clock)
        self._objective_counts = ObjectiveCounts()
        # Requests that are in none of the three yet.
        self._told: list[_Told] = []
        # A monitoring system beside us, where there is one.
        self.monitoring: Monitoring | None = None
        # Per replica, when it last answered, or said that it has no room.
        self.last_sign_s: dict[str, float] = {}

    def configure(self, config: OptimizationConfig) -> None:
        """Keeps as much history as the configuration says, and judges by its objectives."""
        self.history.resize(config.metrics_history_size, enabled=config.enable_performance_tracking)
        self.window.resize(config.metrics_history_size)
        self._objectives = Objectives(**config.objectives.model_dump())
        self.experiments.configure(config)

    def record(
        self,
        outcome: Outcome,
        *,
        strategy: StrategyName | None = None,
        objectives: Objectives | None = None,
    ) -> bool | None:
        """Whether the request was within its objectives, where that could be seen; it is kept."""
        objectives = objectives or self._objectives
        within = within_objectives(objectives, outcome)
        self.window.add(outcome)
        self.telemetry.ended(outcome, within)
        if self.monitoring is not None:
            self.monitoring.ended(outcome)
        if outcome.output_tokens or outcome.ending is Ending.SUCCEEDED or outcome.status == NO_ROOM:
            self.last_sign_s[outcome.replica_id] = outcome.finished_s
        self.note(outcome, within, strategy, objectives)
        return within

    def note(
        self, outcome: Outcome, within: bool | None, strategy: StrategyName | None, objectives: Objectives
    ) -> None:
        """The request is in the timeline, the history and the objectives' counts when somebody looks."""
        clock = self._clock
        self._told.append(_Told(outcome, within, strategy, objectives, clock.monotonic_s(), clock.wall_s()))
        if len(self._told) >= TOGETHER:
            self._fold()

    def _fold(self) -> None:
        """What was told is counted, in the order in which it happened."""
        told, self._told = self._told, []
        for outcome, within, strategy, objectives, now_s, wall_s in told:
            self._objective_counts.note(outcome.route, within, outcome.finished_s)
            self._timeline.ended(
                outcome,
                within=within,
                failed=fault_of(outcome) in (Fault.MEMBER, Fault.OVERLOAD),
                objectives=objectives,
                now_s=now_s,
            )
            if self._history.enabled:
                self._history.add(entries.ended(wall_s, outcome, strategy, within))

    @property
    def timeline(self) -> Timeline:
        """What happened in each stretch of time, up to now."""
        self._fold()
        return self._timeline

    @property
    def history(self) -> History[entries.Entry]:
        """The latest requests, up to now."""
        self._fold()
        return self._history

    @property
    def objective_counts(self) -> ObjectiveCounts:
        """How many requests of each route missed their objectives, up to now."""
        self._fold()
        return self._objective_counts

    def refused(self, route: str, status: int) -> None:
        """Counts a request that no engine got; where that is our doing it missed its objectives."""
        self.telemetry.refused(status)
        if not ours(status):
            return
        now_s = self._clock.monotonic_s()
        self.telemetry.missed(route)
        self.objective_counts.note(route, False, now_s)
        self.timeline.refused(route, now_s)
        self.history.add(entries.turned_away(self._clock.wall_s(), route))

    def service(
        self, active_requests: int | None = None, of: Callable[[str], bool] | None = None
    ) -> ServiceReading:
        """Recent averages, of all answers or those of replicas that `of` takes."""
        own = self.window.reading(self._clock.monotonic_s(), active_requests, of)
        return own if self.monitoring is None or of is not None else self.monitoring.filled(own)

    def improvement(self) -> Improvement | None:
        """What optimisation gained; None before the first look."""
        return self.experiments.improvement()

    def summary(self) -> Summary:
        """Success rate, latency, objectives and the origin's grade over the history."""
        judged = [entry for entry in self.history if entry.judged]
        if not judged:
            return Summary(requests=len(self.history))
        answered = [entry for entry in judged if entry.succeeded]
        latencies = [1000.0 * entry.total_s for entry in answered if entry.total_s is not None]
        timed = [entry.within for entry in judged if entry.within is not None]
        success = len(answered) / len(judged)
        latency = sum(latencies) / len(latencies) if latencies else None
        return Summary(
            requests=len(self.history),
            success_rate=success,
            avg_latency_ms=latency,
            within_objectives_fraction=sum(timed) / len(timed) if timed else None,
            grade=grading.grade(success, latency),
            refused=sum(entry.ending == entries.REFUSED for entry in judged),
        )
