"""`OptimizationConfig`: every setting of the optimizer, and the presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from loadwise.decision.facts import EnsembleStrategy, LoadWeights, Objectives, Policy, Range
from loadwise.decision.numbers import ChosenParameter, TunableParameter
from loadwise.errors import ConfigurationError
from loadwise.settings.checked import Checked, Fraction, Positive
from loadwise.settings.experiments import ExperimentSettings, RolloutSettings

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
BuildBackendName = Literal["inductor", "openvino", "onnxruntime", "tensorrt", "torchao"]
Ceilings = Mapping[ChosenParameter, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class ObjectiveSettings(Checked):
    """A request within both is within its objectives."""

    time_to_first_token_s: Positive = 1.0
    time_per_output_token_s: Positive = 0.05


class LoadWeightSettings(Checked):
    """Weights of the load score's components; absent components are left out, the rest rescaled."""

    queue: Annotated[float, Field(ge=0.0)] = LoadWeights().queue
    kv_cache: Annotated[float, Field(ge=0.0)] = LoadWeights().kv_cache
    in_flight: Annotated[float, Field(ge=0.0)] = LoadWeights().in_flight
    time_to_first_token: Annotated[float, Field(ge=0.0)] = LoadWeights().time_to_first_token
    cpu: Annotated[float, Field(ge=0.0)] = LoadWeights().cpu
    memory: Annotated[float, Field(ge=0.0)] = LoadWeights().memory
    gpu: Annotated[float, Field(ge=0.0)] = LoadWeights().gpu
    error_rate: Annotated[float, Field(ge=0.0)] = LoadWeights().error_rate

    @model_validator(mode="after")
    def _some_weight(self) -> LoadWeightSettings:
        if not any(self.model_dump().values()):
            raise ValueError("at least one weight must be above 0")
        return self


class RangeSettings(Checked):
    """An operator's range for one parameter."""

    low: float
    high: float

    @model_validator(mode="after")
    def _in_order(self) -> RangeSettings:
        if self.low > self.high:
            raise ConfigurationError(
                f"low ({self.low:g}) must not be above high ({self.high:g})", field="low"
            )
        return self


class OptimizationConfig(Checked):
    """Every setting of the optimizer: the origin's eleven first, then ours.

    Raises `ConfigurationError` (a `ValueError`) that names field, value and range.
    """

    enable_torch_compile: bool = True
    compile_mode: CompileMode = "default"
    enable_dynamic_tuning: bool = True
    # At least 0.05 s.
    tuning_interval_sec: Annotated[float, Field(ge=0.05, le=86_400, allow_inf_nan=False)] = 30.0
    load_threshold_high: Fraction = 0.8
    load_threshold_low: Fraction = 0.3
    enable_ensemble: bool = True
    max_ensemble_size: Annotated[int, Field(ge=1, le=64)] = 3
    ensemble_strategy: EnsembleStrategy = EnsembleStrategy.WEIGHTED_VOTING
    enable_performance_tracking: bool = True
    metrics_history_size: Annotated[int, Field(ge=1, le=1_000_000)] = 1000

    objectives: ObjectiveSettings = ObjectiveSettings()
    load_weights: LoadWeightSettings = LoadWeightSettings()
    hysteresis: Annotated[float, Field(ge=0.0, le=0.5)] = 0.05
    # None: one tuning interval.
    dwell_sec: Annotated[float, Field(ge=0.0, le=86_400)] | None = None
    # Send temperature and top_k to servers that are not embedded; needs `ranges` for both.
    tune_sampling: bool = False
    ranges: Mapping[TunableParameter, RangeSettings] = Field(default_factory=dict)
    # Operator's ceilings of values that clients send, for example {"max_tokens": 512}.
    ceilings: Ceilings = Field(default_factory=dict)
    # False: only the default member answers `auto`.
    allow_degrade: bool = True
    default_member: str | None = None
    quality_floor: Fraction = 0.0
    # Refuse at once (429) what would miss its objectives in the queue; False: only what finds no place.
    refuse_late: bool = True
    belief_half_life_sec: Positive = 300.0
    stale_after_sec: Positive = 30.0
    alert_error_rate: Fraction = 0.05
    alert_latency_ms: Positive = 500.0
    alert_improvement: Fraction = 0.10
    # Share of requests that shall be within objectives; alerts count how fast the rest is spent.
    alert_objective_target: Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)] = 0.99
    alert_queue_saturation: Fraction = 0.95
    # Seconds without a token until a member counts as silent, and until it is a page if it still serves.
    alert_silent_sec: Positive = 15.0
    alert_isolation_sec: Positive = 30.0
    alert_stale_sec: Positive = 60.0
    experiment: ExperimentSettings = ExperimentSettings()
    rollout: RolloutSettings = RolloutSettings()
    # Seconds a build may take, and how much memory its process may use.
    build_timeout_sec: Positive = 600.0
    build_memory_bytes: Annotated[int, Field(ge=1)] = 8 * 1024**3
    # Who builds; each has modes of its own, and the fastest build serves.
    build_backends: tuple[BuildBackendName, ...] = ("inductor",)
    # Good builds are kept for the next start, up to so much.
    build_store_bytes: Annotated[int, Field(ge=0)] = 4 * 1024**3
    # Share of time in which a build may compute while requests are being answered. Where two processors are
    # one core, a build slows requests down by two thirds while it computes: an eighth of that is 8 %.
    build_share: Annotated[float, Field(ge=0.01, le=1.0, allow_inf_nan=False)] = 0.125

    @model_validator(mode="after")
    def _consistent(self) -> OptimizationConfig:
        if self.load_threshold_low >= self.load_threshold_high:
            raise ConfigurationError(
                f"load_threshold_low ({self.load_threshold_low:g}) must be below "
                f"load_threshold_high ({self.load_threshold_high:g}); both lie in 0..1",
                field="load_threshold_low",
            )
        missing = {"temperature", "top_k"} - set(self.ranges)
        if self.tune_sampling and missing:
            raise ConfigurationError(
                f"tune_sampling needs ranges for {', '.join(sorted(missing))}", field="tune_sampling"
            )
        return self

    def changed(self, changes: Mapping[str, Any]) -> OptimizationConfig:
        """This configuration with `changes` applied and validated as a whole."""
        unknown = sorted(set(changes) - set(type(self).model_fields))
        if unknown:
            raise ConfigurationError(
                f"Unknown setting {unknown[0]!r}. Known: {', '.join(type(self).model_fields)}.",
                field=unknown[0],
            )
        given = {name: self._whole(name, change) for name, change in changes.items()}
        return type(self)(**{**self.model_dump(), **given})

    def _whole(self, name: str, change: Any) -> Any:
        """A group of settings (objectives, weights) given in part, with its other fields as they are."""
        group = getattr(self, name)
        if isinstance(group, Checked) and isinstance(change, Mapping):
            return {**group.model_dump(), **change}
        return change

    def policy(self) -> Policy:
        """The same as plain data for the core."""
        dwell_s = self.tuning_interval_sec if self.dwell_sec is None else self.dwell_sec
        return Policy(
            load_threshold_high=self.load_threshold_high,
            load_threshold_low=self.load_threshold_low,
            hysteresis=self.hysteresis,
            dwell_s=dwell_s,
            tuning_interval_s=self.tuning_interval_sec,
            weights=LoadWeights(**self.load_weights.model_dump()),
            objectives=Objectives(**self.objectives.model_dump()),
            compile_mode=self.compile_mode,
            enable_dynamic_tuning=self.enable_dynamic_tuning,
            enable_ensemble=self.enable_ensemble,
            tune_sampling=self.tune_sampling,
            ranges={name: Range(low=r.low, high=r.high) for name, r in self.ranges.items()},
            ceilings=dict(self.ceilings.items()),
            belief_half_life_s=self.belief_half_life_sec,
            stale_after_s=self.stale_after_sec,
            error_rate_alert=self.alert_error_rate,
            latency_alert_ms=self.alert_latency_ms,
            improvement_alert=self.alert_improvement,
            refuse_late=self.refuse_late,
            objective_target=self.alert_objective_target,
            queue_alert=self.alert_queue_saturation,
            silent_alert_s=self.alert_silent_sec,
            silent_page_s=self.alert_isolation_sec,
            stale_page_s=self.alert_stale_sec,
        )


# The origin's two sets of recommended settings. What a file or a flag says overrides a preset.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "production": {
        "enable_torch_compile": True,
        "compile_mode": "default",
        "enable_dynamic_tuning": True,
        "tuning_interval_sec": 60.0,
        "load_threshold_high": 0.85,
        "load_threshold_low": 0.25,
        "enable_ensemble": True,
        "max_ensemble_size": 2,
        "ensemble_strategy": "weighted_voting",
        "allow_degrade": False,
        # Measuring costs some requests their optimisation: here it is asked for.
        "experiment": {"block_share": 0.0, "conversation_share": 0.0},
    },
    "performance": {
        "compile_mode": "max-autotune",
        "tuning_interval_sec": 15.0,
        "max_ensemble_size": 5,
        "ensemble_strategy": "adaptive",
    },
}
