"""The load of a server, the strategy that follows from it, and the parameters in force."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from loadwise.clock import SystemClock
from loadwise.decision import load
from loadwise.decision import strategy as strategies
from loadwise.decision.facts import EngineReading, HostReading, ServiceReading
from loadwise.decision.load import LoadScore, ServerLoadMetrics
from loadwise.decision.strategy import Strategy, StrategyState
from loadwise.logs import get_logger
from loadwise.optimizer.host import HostSensor
from loadwise.ports import Clock
from loadwise.ports import HostSensor as Host
from loadwise.settings import OptimizationConfig

log = get_logger(__name__)
LOCAL = "local"


class LoadBasedParameterTuner:
    """Measures load, chooses a strategy for it, and puts its parameters into force.

    `engine` and `service` read the engines and recent answers without waiting; without them the
    score rests on the machine's own figures. A model manager with a method `apply_parameters` is
    told the parameters in force.
    """

    def __init__(
        self,
        config: OptimizationConfig | None = None,
        model_manager: Any = None,
        *,
        engine: Callable[[], Sequence[EngineReading]] | None = None,
        service: Callable[[], ServiceReading] | None = None,
        host: Host | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.config = config or OptimizationConfig()
        self.model_manager = model_manager
        self._engine = engine
        self._service = service
        self._host: Host = host or HostSensor()
        self._clock: Clock = clock or SystemClock()
        self._policy = self.config.policy()
        # Per sensor, what it said last.
        self._last_read: dict[str, Any] = {}
        self._states: dict[str, StrategyState] = {}
        # Per pool, the strategy in force; replaced, never changed, so that requests may read it.
        self.strategies: dict[str, Strategy] = {}
        self._listeners: list[Callable[[Strategy], None]] = []
        # Hears "strategy_listener" or "sensor" when one failed and was survived.
        self.on_failed: Callable[[str], None] = lambda part: None

    def configure(self, config: OptimizationConfig) -> None:
        """Decides by another configuration from now on; strategies in force stay until then."""
        self.config = config
        self._policy = config.policy()

    def on_applied(self, listener: Callable[[Strategy], None]) -> None:
        """Tells `listener` of each strategy that is put into force."""
        self._listeners.append(listener)

    def read_host(self) -> HostReading:
        """The machine's figures now, without waiting."""
        return self._host.read()

    def collect_load_metrics(
        self, readings: Sequence[EngineReading] | None = None, host: HostReading | None = None
    ) -> ServerLoadMetrics:
        """What can be measured now without waiting; None stands for what cannot.

        `readings` are those of one pool; by default all that the engine gives. A sensor that fails is
        logged, and its last figures count until they are stale.
        """
        if readings is None:
            readings = self._sensed("engine", self._engine) or ()
        return load.measure(
            readings,
            self._sensed("host", self.read_host) if host is None else host,
            self._sensed("service", self._service),
            self._clock.monotonic_s(),
            self._policy.stale_after_s,
        )

    def _sensed(self, sensor: str, read: Callable[[], Any] | None) -> Any:
        try:
            if read is not None:
                self._last_read[sensor] = read()
        except Exception as error:  # noqa: BLE001 - a sensor of any making may fail in any way
            log.warning("sensor_failed", sensor=sensor, error=repr(error))
            self.on_failed("sensor")
        return self._last_read.get(sensor)

    def score(self, metrics: ServerLoadMetrics) -> LoadScore:
        """The load score by the configured weights and objectives, with its parts."""
        return load.score(metrics, self._policy.weights, self._policy.objectives)

    def determine_optimization_strategy(self, metrics: ServerLoadMetrics, pool_id: str = LOCAL) -> Strategy:
        """The strategy for these metrics of a pool, with hysteresis and dwell; it is current from now on."""
        state = self._states.get(pool_id, StrategyState())
        score = self.score(metrics).value
        state, strategy = strategies.choose(self._policy, state, score, self._clock.monotonic_s())
        self._states[pool_id] = state
        self.strategies = {**self.strategies, pool_id: strategy}
        return strategy

    async def apply_parameter_adjustments(self, strategy: Strategy) -> Strategy:
        """The strategy's parameters and compile mode are in force; who listens has been told.

        One listener's failure is logged and does not keep the others from hearing.
        """
        if not self.config.enable_dynamic_tuning:
            return strategy
        for listener in [self._tell_manager, *self._listeners]:
            try:
                listener(strategy)
            except Exception:  # another's code must not stop the loop
                log.exception("strategy_listener_failed", strategy=strategy.name)
                self.on_failed("strategy_listener")
        return strategy

    def _tell_manager(self, strategy: Strategy) -> None:
        apply = getattr(self.model_manager, "apply_parameters", None)
        if callable(apply):
            apply(strategy.parameters)

    def get_current_strategy(self) -> Strategy | None:
        """The strategy of the pool under most load, or None before the first decision."""
        if not self.strategies:
            return None
        return max(self.strategies.values(), key=lambda found: found.load_score or 0.0)

    def in_force(self) -> Strategy:
        """The current strategy; before the first decision the one for unknown load."""
        current = self.get_current_strategy()
        if current is not None:
            return current
        return strategies.choose(self._policy, StrategyState(), None, self._clock.monotonic_s())[1]

    def safe(self, now_s: float) -> dict[str, Strategy]:
        """What every pool falls back to when load cannot be known; it is in force from now on."""
        _, fallback = strategies.choose(self._policy, StrategyState(), None, now_s)
        self.strategies = dict.fromkeys(self.strategies or (LOCAL,), fallback)
        return self.strategies
