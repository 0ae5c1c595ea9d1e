"""`ServerSideOptimizer`: the origin's main class, for a library's models and for a whole server alike."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import MutableMapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

from loadwise.clock import SystemClock
from loadwise.compiler import ModelCompiler
from loadwise.decision.facts import Ending, Outcome, Policy, ServiceReading
from loadwise.decision.lastgood import KEPT_VERSIONS
from loadwise.decision.step import PoolDecision
from loadwise.engines.inside.registry import RegistryReader
from loadwise.errors import ConfigurationError
from loadwise.logs import get_logger
from loadwise.optimizer import reporting, views
from loadwise.optimizer.assignment import Assignment
from loadwise.optimizer.chronicle import Chronicle
from loadwise.optimizer.config_store import ConfigStore
from loadwise.optimizer.configurations import Configurations
from loadwise.optimizer.context import facts_of, value_of
from loadwise.optimizer.cycle import Cycle, Parts
from loadwise.optimizer.director import EnsembleDirector
from loadwise.optimizer.ensemble_manager import ModelEnsembleManager
from loadwise.optimizer.fleet import AUTO, Fleet
from loadwise.optimizer.gauges import gauges
from loadwise.optimizer.lookout import Lookout
from loadwise.optimizer.loop import ControlLoop
from loadwise.optimizer.model_manager import DynamicModelManager
from loadwise.optimizer.parameter_tuner import LoadBasedParameterTuner
from loadwise.optimizer.recorder import Recorder
from loadwise.optimizer.sensing import EngineReadings, can_be_observed, reader_of
from loadwise.optimizer.watch import Watch
from loadwise.ports import AlertSink, Clock, Engine, HostSensor, JsonObject
from loadwise.settings import OptimizationConfig
from loadwise.telemetry.alerts import AlertBook, LogSink
from loadwise.telemetry.history import History
from loadwise.telemetry.monitoring import HandlerSink, Monitoring
from loadwise.telemetry.prometheus import Telemetry

log = get_logger(__name__)
# The replica id of an engine client that is asked like a member's engine.
CLIENT: Final = "engine"
# In the task that handles a request: what was chosen for it.
_CHOSEN: ContextVar[Chosen | None] = ContextVar("loadwise_chosen_member", default=None)


class Chosen(NamedTuple):
    """Which optimizer chose, the name that was asked for, the member it got, its part in experiments."""

    optimizer: int
    asked: str
    member_id: str
    assignment: Assignment


class ServerSideOptimizer:
    """Compiles, tunes, selects, watches: holds the parts together and turns the loop.

    `engine_client` may be anything: one with a method `reading()`, or an async `observe()`, is read, and so
    is a real `AsyncLLM`; any other leaves the load to the machine's own figures, with a warning.
    `model_config` is kept for the caller. `metrics_collector` and `alert_manager` are a monitoring system
    beside us (see `telemetry.monitoring`).
    The parts are attributes: `model_compiler`, `parameter_tuner`, `ensemble_manager`, `model_manager`,
    `director`, `recorder`, `configurations`, `alerts`, `watch`.
    """

    def __init__(
        self,
        engine_client: Any = None,
        model_config: Any = None,
        optimization_config: OptimizationConfig | None = None,
        *,
        fleet: Fleet | None = None,
        model_compiler: ModelCompiler | None = None,
        host: HostSensor | None = None,
        sinks: Sequence[AlertSink] | None = None,
        state_dir: Path | None = None,
        random: Random | None = None,
        clock: Clock | None = None,
        metrics_collector: Any = None,
        alert_manager: Any = None,
    ) -> None:
        base = optimization_config or OptimizationConfig()
        self.engine_client = engine_client
        self.model_config = model_config
        self.clock: Clock = clock or SystemClock()
        self.model_manager = DynamicModelManager(
            # As many as may be put back.
            max_versions=KEPT_VERSIONS,
            history_size=base.metrics_history_size,
            clock=self.clock,
        )
        self.configurations = Configurations(
            base, self.model_manager, store=ConfigStore(state_dir, base, self.clock), clock=self.clock
        )
        config = self.configurations.current
        self.recorder = Recorder(config, clock=self.clock)
        if metrics_collector is not None:
            self.recorder.monitoring = Monitoring(metrics_collector, self.clock)
        self.model_compiler = model_compiler or ModelCompiler(config, clock=self.clock, automatic=False)
        # A real engine is read through the metrics that it keeps in this process.
        self._client = RegistryReader.of(engine_client, CLIENT, self.clock) or engine_client
        client = self._client_of(self._client)
        self.parameter_tuner = LoadBasedParameterTuner(
            config, self.model_manager, engine=client, service=self._service, host=host, clock=self.clock
        )
        self.ensemble_manager = ModelEnsembleManager(
            config,
            fleet=fleet,
            strategy=self.parameter_tuner.get_current_strategy,
            random=random,
            clock=self.clock,
        )
        self.ensemble_manager.configure(config)
        self.director = EnsembleDirector(self.ensemble_manager, self.recorder, clock=self.clock)
        self.director.running = False
        self.model_compiler.busy = lambda: len(self.director.in_flight) > 0
        self.model_compiler.drained = self.director.drained
        self.director.config_version = self.configurations.version
        handlers = [] if alert_manager is None else [HandlerSink(alert_manager)]
        for handler in handlers:
            handler.on_failed = lambda: self.cycle.survived("notification_handler")
        self.alerts = AlertBook([*([LogSink()] if sinks is None else sinks), *handlers])
        self.watch = Watch(self, self.alerts)
        self._join(config)

    def _client_of(self, engine_client: Any) -> Any:
        reader = reader_of(engine_client)
        if reader is None and can_be_observed(engine_client):
            return lambda: self.readings.latest()
        if reader is None and engine_client is not None:
            log.warning(
                "engine_offers_no_readings",
                engine=type(engine_client).__name__,
                remedy="Load rests on the machine's own figures; give the engine a method reading().",
            )
        return reader

    def _join(self, config: OptimizationConfig) -> None:
        """What needs the other parts to be there."""
        self.readings = EngineReadings(self._engines, self._observed)
        parts = Parts(
            director=self.director,
            tuner=self.parameter_tuner,
            compiler=self.model_compiler,
            configurations=self.configurations,
            recorder=self.recorder,
            readings=self.readings,
            evaluate=self.watch.evaluate,
            decisions=History(config.metrics_history_size, enabled=config.enable_performance_tracking),
            client=reader_of(self._client),
        )
        self.cycle = Cycle(parts, self.clock)
        self.loop = ControlLoop(
            self.cycle.tune, self.cycle.probe, lambda: self.configurations.current.tuning_interval_sec
        )
        self.alerts.on_sink_failed = lambda: self.cycle.survived("alert_sink")
        self.parameter_tuner.on_failed = self.cycle.survived
        if self.recorder.monitoring is not None:
            self.recorder.monitoring.on_failed = lambda: self.cycle.survived("metrics_collector")
        self.configurations.on_applied(self._configured)
        self.director.on_finished(self.configurations.count)
        self.chronicle = Chronicle(self)
        self.telemetry.gauges_from(lambda: gauges(self))
        self._optimization_ms: deque[float] = deque(maxlen=config.metrics_history_size)
        self.started = False
        self.bypassed = False
        # Starting and stopping take turns: the later one counts.
        self._switching = asyncio.Lock()
        self.lookout = Lookout(self)
        self.cycle.on_probed |= {"watch": self.lookout.sample, "chronicle": self.chronicle.look}

    # --- the origin's methods ---

    async def start_optimization(self) -> None:
        """The loop turns and requests are optimised; nothing happens when it already runs."""
        async with self._switching:
            self.started = True
            await self.loop.start()
            self.director.running = True

    async def stop_optimization(self) -> None:
        """What `start_optimization` began has ended, builds too; serving goes on with nothing touched."""
        async with self._switching:
            self.director.running = False
            await self.loop.stop()
            self.model_compiler.stop_builds()

    async def optimize_model_for_request(self, model: Any, request_context: Any = None) -> Any:
        """What shall answer: a member of the ensemble, else `model`, with its promoted build.

        The chosen member is noted in a mutable context as `selected_model`, and hears of what the same
        task records under the name that was asked for. While optimisation is stopped, whenever a part
        fails, and for a context that makes no sense, `model` itself answers. A request that an experiment or
        the rollout leaves alone gets the default member as it is, and its context says why: `left_alone`.
        """
        _CHOSEN.set(None)
        if not self.director.running:
            return model
        began_s = self.clock.monotonic_s()
        try:
            answering = self._answering(model, request_context)
        except ConfigurationError as error:
            # The caller's mistake is no fault of the loop.
            log.warning("request_context_refused", reason=str(error))
            return model
        except Exception as error:  # noqa: BLE001 - serving goes on with the model as it is
            self.cycle.failed("optimize_model_for_request", error)
            return model
        finally:
            self._optimization_ms.append(1000.0 * (self.clock.monotonic_s() - began_s))
        self.cycle.recovered("optimize_model_for_request")
        return answering

    def record_request_performance(self, model: Any, latency_ms: float, success: bool) -> None:
        """A request's latency (ms, at least 0) and success are kept and learned from.

        `model` is a name, or a model (its class then names it); where the ensemble answered for that
        name in this task, its member is meant. Raises `ConfigurationError`.
        """
        asked = model if isinstance(model, str) else type(model).__name__
        chosen = self._chosen_for(asked)
        own = chosen is None or asked in self.ensemble_manager.fleet
        name = asked if chosen is None or own else chosen.member_id
        if not 0.0 <= latency_ms < float("inf"):
            raise ConfigurationError(
                f"latency_ms must be at least 0, not {latency_ms!r}.", field="latency_ms"
            )
        strategy = self.parameter_tuner.get_current_strategy()
        outcome = Outcome(
            request_id="",
            member_id=name,
            replica_id=f"{name}/0",
            ending=Ending.SUCCEEDED if success else Ending.FAILED,
            finished_s=self.clock.monotonic_s(),
            total_s=latency_ms / 1000.0,
            load_score=None if strategy is None else strategy.load_score,
            control=not self.director.running or (chosen is not None and chosen.assignment.held is not None),
        )
        self.ensemble_manager.learn(outcome)
        within = self.recorder.record(outcome, strategy=None if strategy is None else strategy.name)
        if chosen is not None:
            if within is None:
                # A library's caller counts no tokens: the whole latency is all that there is to judge.
                within = latency_ms <= self.config.alert_latency_ms
            belief = self.ensemble_manager.beliefs.get(name)
            quality = None if belief is None else belief.quality
            self.recorder.experiments.note(chosen.assignment, outcome, within, quality)

    def get_optimization_status(self) -> JsonObject:
        """What runs, with which configuration, strategy, load, members, builds and alerts."""
        return views.status(self)

    def export_performance_report(self) -> JsonObject:
        """History, grade, objectives, measured improvement and recommendations."""
        return reporting.report(self)

    # --- what the server adds ---

    @property
    def telemetry(self) -> Telemetry:
        """Counters, histograms and gauges; `render(accept)` is `/metrics`."""
        return self.recorder.telemetry

    @property
    def config(self) -> OptimizationConfig:
        """The configuration in force."""
        return self.configurations.current

    @property
    def tuning_policy(self) -> Policy | None:
        """The rules by which requests are tuned; None while optimisation is stopped."""
        return self.ensemble_manager.policy if self.director.running else None

    def avg_optimization_time_ms(self) -> float | None:
        """Mean time of recent decisions in the library; None before the first."""
        times = self._optimization_ms
        return sum(times) / len(times) if times else self.telemetry.mean_decision_ms()

    def bypass(self) -> None:
        """Requests pass untouched until `start_optimization`, and the status says so."""
        self.bypassed = True

    async def measure_now(self) -> PoolDecision:
        """The worst pool's metrics and score, read at this call; no strategy changes by it."""
        return await self.cycle.measured()

    async def close(self) -> None:
        """The loop, the watch over it and builds in progress have ended, and what happened is on disk."""
        await self.watch.stop()
        self.telemetry.close()
        await self.stop_optimization()
        self.model_compiler.close()
        await self.chronicle.close()

    def _answering(self, model: Any, context: Any) -> Any:
        asked = str(value_of(context, "model_name") or type(model).__name__)
        model_id, chosen = asked, model
        assignment = self._assigned(context)
        alone = assignment.held
        if self.config.enable_ensemble and self.ensemble_manager.fleet.active():
            selection = self.ensemble_manager.select_model_for_request(context, control=alone is not None)
            if selection.model is not None:
                model_id, chosen = selection.model_id, selection.model
        if isinstance(context, MutableMapping):
            context["selected_model"] = model_id
            if alone is not None:
                context["left_alone"] = alone.shown
        _CHOSEN.set(Chosen(id(self), asked, model_id, assignment))
        return self._compiled(chosen, model_id) if alone is None else chosen

    def _assigned(self, context: Any) -> Assignment:
        request = facts_of(context, self.ensemble_manager.fleet)
        return self.recorder.experiments.assign(AUTO, request, self.clock.monotonic_s())

    def _chosen_for(self, name: str) -> Chosen | None:
        """What was chosen in this task for that name, asked for or answering."""
        found = _CHOSEN.get()
        if found is None or found.optimizer != id(self) or name not in (found.asked, found.member_id):
            return None
        return found

    def _compiled(self, model: Any, model_id: str) -> Any:
        if not self.config.enable_torch_compile:
            return model
        return self.model_compiler.compile_model(model, model_id)

    def _service(self) -> ServiceReading:
        return self.recorder.service(len(self.director.in_flight))

    def _engines(self) -> dict[str, Engine]:
        """Engines to be asked: the members', and the client where it is one."""
        own = {CLIENT: self.engine_client} if can_be_observed(self.engine_client) else {}
        return {**own, **self.ensemble_manager.fleet.engines()}

    def _observed(self, replica_id: str, error: Exception | None) -> None:
        part = f"observe:{replica_id}"
        if error is None:
            self.cycle.recovered(part)
        else:
            self.cycle.failed(part, error)

    def _configured(self, config: OptimizationConfig, version: int) -> None:
        self.director.config_version = version
        self.parameter_tuner.configure(config)
        self.ensemble_manager.configure(config)
        self.recorder.configure(config)
        self.model_compiler.config = config
        size = config.metrics_history_size
        self.model_manager.resize_history(size)
        self.cycle.parts.decisions.resize(size, enabled=config.enable_performance_tracking)
        self._optimization_ms = deque(self._optimization_ms, maxlen=size)
        self.loop.wake()
