"""One turn of the loop: observe, decide by the core, act, record; each part may fail alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from loadwise.compiler import ModelCompiler
from loadwise.decision import step
from loadwise.decision.facts import EngineReading, HostReading, ServiceReading
from loadwise.decision.step import Decision, Observation, PoolDecision
from loadwise.errors import EngineError
from loadwise.logs import get_logger
from loadwise.optimizer import abilities
from loadwise.optimizer.configurations import Configurations
from loadwise.optimizer.director import EnsembleDirector
from loadwise.optimizer.parameter_tuner import LOCAL, LoadBasedParameterTuner
from loadwise.optimizer.recorder import Recorder
from loadwise.optimizer.sensing import EngineReadings
from loadwise.optimizer.silences import silences
from loadwise.ports import Clock
from loadwise.telemetry import names
from loadwise.telemetry.history import History
from loadwise.telemetry.journal.events import Stepped

log = get_logger(__name__)
# Without a decision for so long, what was decided on old figures is given up for the safe strategy.
SAFE_AFTER_S: Final = 30.0
# Parts whose errors are survived and are alerts of their own kind.
GUARDED: Final = (
    "host", "engine_client", "places", "decision", "safe_strategy", "experiments", "watch", "strategy",
    "builds", "configuration", "last_known_good", "alerts", "alert_sink", "journal",
    "optimize_model_for_request", "middleware", "strategy_listener", "sensor", "notification_handler",
    "metrics_collector", "engine_process",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A part that failed in the latest turn, why, and since when."""

    part: str
    message: str
    since_s: float


@dataclass(slots=True, kw_only=True)
class Parts:
    """What a turn reads and moves."""

    director: EnsembleDirector
    tuner: LoadBasedParameterTuner
    compiler: ModelCompiler
    configurations: Configurations
    recorder: Recorder
    readings: EngineReadings
    # Evaluates the alert rules.
    evaluate: Callable[[], None]
    decisions: History[Decision]
    # The library's engine client, read without waiting; None where it offers nothing.
    client: Callable[[], Sequence[EngineReading]] | None = None


class Cycle:
    """Turns: `probe` follows load, `tune` also plans builds, judges configurations and raises alerts."""

    def __init__(self, parts: Parts, clock: Clock) -> None:
        self.parts = parts
        self._clock = clock
        self._state = step.State()
        self._host: HostReading | None = None
        self.decision: Decision | None = None
        self.faults: dict[str, Fault] = {}
        self.errors: Counter[str] = Counter()
        # When each part last failed, whether or not it works again.
        self.failed_s: dict[str, float] = {}
        self.turns = 0
        for part in GUARDED:
            # From 0 on, so that a first error is seen as an increase.
            parts.recorder.telemetry.count(names.STEP_ERRORS, part, by=0.0)
        # Told after each look at the load, by the part that each is.
        self.on_probed: dict[str, Callable[[], None]] = {}
        parts.director.on_surge = self.look

    async def probe(self) -> None:
        """Load is read and strategy, places and health follow; whatever fails, serving goes on."""
        await self._part("host", self._read_host)
        await self.parts.readings.refresh()
        await self._part("engine_client", self._read_client)
        if self.parts.recorder.monitoring is not None:
            await self._part("monitoring", self.parts.recorder.monitoring.read)
        await self._part("places", self._places)
        if not await self._part("decision", self._decide):
            await self._part("safe_strategy", self._fall_back)
        await self._part("experiments", self._experiment)
        for part, listener in self.on_probed.items():
            await self._part(part, listener)

    def look(self) -> None:
        """Strategies and leads follow what is asked for now, by the latest readings."""
        try:
            self._decide()
        except Exception as error:  # noqa: BLE001 - whatever fails, serving goes on; it is told on
            self.failed("decision", error)

    async def measured(self) -> PoolDecision:
        """The worst pool as it is now, without deciding anything."""
        await self._part("host", self._read_host)
        await self.parts.readings.refresh()
        await self._part("engine_client", self._read_client)
        return step.step(self.parts.configurations.policy, self._state, self.observation())[1].worst

    async def tune(self) -> None:
        """A whole turn."""
        await self.probe()
        self.turns += 1
        await self._part("strategy", self._apply_strategy)
        await self._part("builds", self._plan_builds)
        await self._part("configuration", self.parts.configurations.follow)
        await self._part("last_known_good", self._judge)
        await self._part("alerts", self.parts.evaluate)
        if self.decision is not None:
            self.parts.decisions.add(self.decision)

    def failed(self, part: str, error: Exception) -> None:
        """The part's failure is logged, counted and shown until it works again."""
        since_s = self.faults[part].since_s if part in self.faults else self._clock.monotonic_s()
        if part not in self.faults:
            # An engine that is down is told of in one line; what nobody expected is told of in full.
            trace = None if isinstance(error, EngineError) else error
            log.warning("control_loop_part_failed", part=part, error=repr(error), exc_info=trace)
        self.faults[part] = Fault(part=part, message=f"{type(error).__name__}: {error}", since_s=since_s)
        self.errors[part] += 1
        self.survived(part)

    def survived(self, part: str, errors: int = 1) -> None:
        """Errors of a part that a guard caught are counted, and when the last of them was."""
        kind = part.partition(":")[0]
        self.failed_s[kind] = self._clock.monotonic_s()
        self.parts.recorder.telemetry.count(names.STEP_ERRORS, kind, by=float(errors))

    def recovered(self, part: str) -> None:
        """The part works again; nothing happens when it had not failed."""
        self.faults.pop(part, None)

    async def _part(self, name: str, action: Callable[[], Awaitable[None] | None]) -> bool:
        try:
            waiting = action()
            if waiting is not None:
                await waiting
        except Exception as error:  # noqa: BLE001 - whatever fails, the loop goes on; it is told on
            self.failed(name, error)
            return False
        self.recovered(name)
        return True

    # --- observe ---

    async def _read_host(self) -> None:
        self._host = await asyncio.to_thread(self.parts.tuner.read_host)

    def _read_client(self) -> None:
        for reading in self.parts.client() if self.parts.client is not None else ():
            self.parts.readings.keep(reading)

    def _places(self) -> None:
        ensemble = self.parts.director.ensemble
        fleet = ensemble.fleet
        abilities.refresh(fleet)
        members = [fleet.parts(name).member for name in fleet]
        self.parts.director.places.refresh(members, self.parts.readings, ensemble.replicas_out())
        known = {
            *self.parts.readings.asked(),
            *(reading.replica_id for reading in self.parts.readings.latest()),
        }
        self.faults = {
            name: fault
            for name, fault in self.faults.items()
            if not name.startswith("observe:") or name.removeprefix("observe:") in known
        }

    def observation(self) -> Observation:
        """What is known now: the latest readings, recent answers, beliefs and builds."""
        now_s, parts = self._clock.monotonic_s(), self.parts
        ensemble = parts.director.ensemble
        pools = self.pools()
        owners = {replica: pool for pool, replicas in pools.items() for replica in replicas}
        return Observation(
            now_s=now_s,
            engines={pool: parts.readings.latest(replicas) for pool, replicas in pools.items()},
            services={pool: self._service(pool, owners) for pool in pools},
            host=self._host,
            host_pools=frozenset({LOCAL}),
            beliefs={
                route.name: {m.member_id: ensemble.beliefs[m.member_id] for m in route.members}
                for route in ensemble.fleet.routes.values()
            },
            silences=silences(parts.director, parts.readings, parts.recorder, now_s),
            crews=parts.director.demand.crews(ensemble.fleet.routes.values(), parts.director.places.capacity),
            compiled=tuple(parts.compiler.compilation_stats),
            builds=parts.compiler.facts(),
            builds_enabled=parts.configurations.current.enable_torch_compile,
            build_options=parts.compiler.options(),
            model_uses=parts.compiler.uses(),
        )

    def pools(self) -> dict[str, list[str]]:
        """Replica ids by pool; what no member owns (the library's engine client) is local."""
        fleet = self.parts.director.ensemble.fleet
        pools: dict[str, list[str]] = {}
        for name in fleet:
            for replica in fleet.parts(name).member.replicas:
                pools.setdefault(replica.pool_id, []).append(replica.replica_id)
        owned = {replica for replicas in pools.values() for replica in replicas}
        strangers = [r.replica_id for r in self.parts.readings.latest() if r.replica_id not in owned]
        if strangers or not pools:
            pools.setdefault(LOCAL, []).extend(strangers)
        return pools

    def _service(self, pool_id: str, owners: Mapping[str, str]) -> ServiceReading:
        """Recent answers of the pool's replicas; what no member owns is local."""
        active = self.parts.director.in_flight.by_pool.get(pool_id, 0)
        own = self.parts.recorder.service(active, lambda replica: owners.get(replica, LOCAL) == pool_id)
        monitoring = self.parts.recorder.monitoring
        # Its figures are of the whole process, and so is this pool.
        return own if monitoring is None or pool_id != LOCAL else monitoring.filled(own)

    # --- decide and act ---

    def _decide(self) -> None:
        parts, before = self.parts, self._state
        policy, observation = parts.configurations.policy, self.observation()
        self._state, decision = step.step(policy, before, observation)
        ensemble = parts.director.ensemble
        for beliefs in decision.beliefs.values():
            ensemble.beliefs.update(beliefs)
        ensemble.tell(Stepped(policy, before, observation, self._state, decision))
        for change in (change for found in decision.health.values() for change in found):
            log.warning("member_health", member=change.subject, health=change.health, reason=change.reason)
        strategies = {name: pool.strategy for name, pool in decision.pools.items()}
        parts.tuner.strategies = strategies
        if parts.recorder.monitoring is not None and parts.recorder.monitoring.lost:
            strategies = parts.tuner.safe(decision.decided_s)
        parts.director.strategies = strategies
        parts.director.demand.limits = {crew: led.limit for crew, led in self._state.leads.items()}
        parts.recorder.telemetry.count(names.STEPS, decision.worst.strategy.reason)
        self._count_time(decision.decided_s)
        changed = self.decision is None or decision.worst.changed
        self.decision = decision
        if changed:
            log.info(
                "strategy", name=decision.worst.strategy.name, reason=decision.worst.strategy.reason,
                load_score=decision.worst.score.value, pool=decision.worst_pool,
            )  # fmt: skip

    def _count_time(self, now_s: float) -> None:
        """The time since the last decision goes to its strategy; a loop that was stopped has none."""
        last = self.decision
        if last is not None and self.parts.director.running:
            spent_s = max(0.0, now_s - last.decided_s)
            self.parts.recorder.telemetry.count(
                names.STRATEGY_SECONDS, last.worst.strategy.name.value, by=spent_s
            )

    def _fall_back(self) -> None:
        now_s = self._clock.monotonic_s()
        decided_s = self.decision.decided_s if self.decision is not None else float("-inf")
        if now_s - decided_s > SAFE_AFTER_S:
            self.parts.director.strategies = self.parts.tuner.safe(now_s)

    def _experiment(self) -> None:
        recorder, flights, now_s = (
            self.parts.recorder,
            self.parts.director.in_flight,
            self._clock.monotonic_s(),
        )
        score = None if self.decision is None else self.decision.worst.score.value
        recorder.experiments.watch(
            score, lambda: recorder.objective_counts.windows(now_s), flights.left_alone
        )
        recorder.experiments.turn()

    async def _apply_strategy(self) -> None:
        strategy = self.parts.tuner.get_current_strategy()
        if strategy is not None:
            await self.parts.tuner.apply_parameter_adjustments(strategy)

    def _plan_builds(self) -> None:
        if self.decision is None:
            return
        self.parts.compiler.serve_mode(self.decision.worst.strategy.compile_mode)
        if self.decision.builds.cancel:
            self.parts.compiler.stop_builds(forced=False)
        make = self.decision.builds.make
        if make is not None:
            self.parts.compiler.build(*make)

    async def _judge(self) -> None:
        verdict = await self.parts.configurations.judge()
        if verdict.revert_to is not None:
            self.parts.recorder.telemetry.count(names.ROLLBACKS)
