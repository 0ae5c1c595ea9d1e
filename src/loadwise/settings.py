"""What an operator may set: the only reader of files and environment.

Precedence: command line over environment (`LOADWISE_`, `__` for nesting) over file over default.
Unknown keys are refused; every refusal names the field, its value and the range.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from loadwise.decision.facts import EnsembleStrategy, LoadWeights, Objectives, Policy, Range
from loadwise.errors import ConfigurationError

Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
Scope = Literal["infer", "metrics", "feedback", "admin:read", "admin:write"]
TunableParameter = Literal["max_tokens", "temperature", "top_k"]


def describe(error: ValidationError) -> str:
    """One line per problem: field, what is allowed, the value that was given (never a secret's)."""
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or "settings"
        given = problem.get("input")
        secret = any(word in where for word in ("key", "secret", "sha256"))
        shown = "" if secret or isinstance(given, dict | list) else f", not {given!r:.80}"
        lines.append(f"{where}: {problem['msg']}{shown}")
    return "; ".join(lines)


def _first_field(error: ValidationError) -> str | None:
    location = error.errors(include_url=False)[0]["loc"]
    return ".".join(str(part) for part in location) or None


class Checked(BaseModel):
    """A frozen settings model whose errors are `ConfigurationError`s, which are `ValueError`s."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(describe(error), field=_first_field(error)) from None


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
            raise ValueError(f"low ({self.low:g}) must not be above high ({self.high:g})")
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
    ceilings: Mapping[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    # False: only the default member answers `auto`.
    allow_degrade: bool = True
    default_member: str | None = None
    quality_floor: Fraction = 0.0
    belief_half_life_sec: Positive = 300.0
    stale_after_sec: Positive = 30.0
    alert_error_rate: Fraction = 0.05
    alert_latency_ms: Positive = 500.0
    alert_improvement: Fraction = 0.10
    # Share of time, in blocks of ten seconds, in which nothing is optimised, to measure what it gains.
    control_fraction: Annotated[float, Field(ge=0.0, le=0.5, allow_inf_nan=False)] = 0.02
    # Seconds a build may take, and how much memory its process may use.
    build_timeout_sec: Positive = 600.0
    build_memory_bytes: Annotated[int, Field(ge=1)] = 8 * 1024**3

    @model_validator(mode="after")
    def _consistent(self) -> OptimizationConfig:
        if self.load_threshold_low >= self.load_threshold_high:
            raise ValueError(
                f"load_threshold_low ({self.load_threshold_low:g}) must be below "
                f"load_threshold_high ({self.load_threshold_high:g}); both lie in 0..1"
            )
        missing = {"temperature", "top_k"} - set(self.ranges)
        if self.tune_sampling and missing:
            raise ValueError(f"tune_sampling needs ranges for {', '.join(sorted(missing))}")
        return self

    def changed(self, changes: Mapping[str, Any]) -> OptimizationConfig:
        """This configuration with `changes` applied and validated as a whole."""
        unknown = sorted(set(changes) - set(type(self).model_fields))
        if unknown:
            raise ConfigurationError(
                f"Unknown setting {unknown[0]!r}. Known: {', '.join(type(self).model_fields)}.",
                field=unknown[0],
            )
        return type(self)(**{**self.model_dump(), **changes})

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
            ceilings=dict(self.ceilings),
            belief_half_life_s=self.belief_half_life_sec,
            stale_after_s=self.stale_after_sec,
            error_rate_alert=self.alert_error_rate,
            latency_alert_ms=self.alert_latency_ms,
            improvement_alert=self.alert_improvement,
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
    },
    "performance": {
        "compile_mode": "max-autotune",
        "tuning_interval_sec": 15.0,
        "max_ensemble_size": 5,
        "ensemble_strategy": "adaptive",
    },
}


class KeySettings(Checked):
    """One key of `keys:`; only its SHA-256 is kept."""

    id: Annotated[str, Field(min_length=1, max_length=64)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: frozenset[Scope] = frozenset({"infer"})
    tenant: str = "default"
    optimize: bool = True
    ceilings: Mapping[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)


class ModelSettings(Checked):
    """A model folder served in this process."""

    path: Path
    engine: Literal["auto", "openvino", "torch"] = "auto"
    quality: Fraction | None = None
    weight: Positive = 1.0
    standby: bool = False


class UpstreamSettings(Checked):
    """One OpenAI-compatible server; several members may name replicas of one pool."""

    url: AnyHttpUrl
    # The name it serves the model under; None: the first it lists.
    model: str | None = None
    # Name of the environment variable that holds its key.
    api_key_env: str | None = None
    pool: str | None = None
    replicas: tuple[AnyHttpUrl, ...] = ()
    capacity_requests: Annotated[int, Field(ge=1)] | None = None
    context_tokens: Annotated[int, Field(ge=1)] | None = None
    quality: Fraction | None = None
    weight: Positive = 1.0
    standby: bool = False


class RouteSettings(Checked):
    """A public model name and the members that may answer it, in order of preference."""

    members: tuple[str, ...]
    default_member: str | None = None
    objectives: ObjectiveSettings | None = None
    ensemble_strategy: EnsembleStrategy | None = None
    quality_floor: Fraction | None = None


class TimeoutSettings(Checked):
    """How long each stage towards an upstream may take, in seconds."""

    connect_s: Positive = 5.0
    first_byte_s: Positive = 120.0
    idle_s: Positive = 60.0
    total_s: Positive = 1800.0


def _state_home() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local" / "state")) / "loadwise"


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "loadwise"


class _YamlFile(PydanticBaseSettingsSource):
    """Values of the file that `config` names."""

    def __init__(self, settings_cls: type[BaseSettings], path: Path | None) -> None:
        super().__init__(settings_cls)
        self.path = path

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        return {} if self.path is None else read_yaml(self.path)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's top-level mapping; `ConfigurationError` when it is missing or is none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"Cannot read {path}: {error.strerror or error}.", field="config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = str(error).replace("\n", " ")
        raise ConfigurationError(f"{path} is no valid YAML: {place}", field="config") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} must hold a mapping of settings, not a {type(values).__name__}.")
    return values


class Settings(BaseSettings):
    """Everything `loadwise serve` may be told."""

    model_config = SettingsConfigDict(
        env_prefix="LOADWISE_", env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )
    _file: ClassVar[Path | None] = None

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 2240
    admin_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    api_key: SecretStr | None = None
    admin_key: SecretStr | None = None
    keys: tuple[KeySettings, ...] = ()
    preset: Literal["production", "performance"] | None = None
    bypass: bool = False

    models: Mapping[str, ModelSettings] = Field(default_factory=dict)
    model_dir: Path | None = None
    upstreams: Mapping[str, UpstreamSettings] = Field(default_factory=dict)
    routes: Mapping[str, RouteSettings] = Field(default_factory=dict)
    optimization: OptimizationConfig = OptimizationConfig()

    timeouts: TimeoutSettings = TimeoutSettings()
    body_limit_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024**2
    # Requests that may wait in one embedded engine before 429, and run at once.
    queue_limit: Annotated[int, Field(ge=0)] = 128
    max_running: Annotated[int, Field(ge=1)] = 32
    # Bytes of key/value cache of one embedded member.
    kv_cache_bytes: Annotated[int, Field(ge=1024**2)] = 64 * 1024**2
    state_dir: Path = Field(default_factory=_state_home)
    cache_dir: Path = Field(default_factory=_cache_home)
    report_dir: Path | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, then environment, then file."""
        return init_settings, env_settings, _YamlFile(settings_cls, cls._file)

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: dict[str, Any]) -> dict[str, Any]:
        preset = str(values.get("preset"))
        if preset in PRESETS and not isinstance(values.get("optimization"), OptimizationConfig):
            return {**values, "optimization": {**PRESETS[preset], **(values.get("optimization") or {})}}
        return values

    @model_validator(mode="after")
    def _guarded(self) -> Settings:
        loopback = self.host in {"localhost", "::1"} or self.host.startswith("127.")
        if not loopback and self.api_key is None and not self.keys:
            raise ValueError(
                f"host {self.host} is reachable from outside and no key is set: set api_key (--api-key or "
                "LOADWISE_API_KEY) or keys, or listen on 127.0.0.1"
            )
        both = sorted(set(self.models) & set(self.upstreams))
        if both:
            raise ValueError(f"{both[0]!r} is named both as a model and as an upstream; names must differ")
        return self


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Settings from file, environment and overrides (the command line's), or `ConfigurationError`."""
    source = type("Settings", (Settings,), {"_file": config, "__module__": __name__})
    try:
        loaded: Settings = source(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise ConfigurationError(describe(error), field=_first_field(error)) from None
    return loaded


def explain_setting(name: str) -> dict[str, Any]:
    """A setting's type, default and range, by its (dotted) name; `ConfigurationError` for an unknown one."""
    schema = Settings.model_json_schema(mode="serialization")
    definitions = schema.get("$defs", {})
    candidates = {**definitions["OptimizationConfig"]["properties"], **schema["properties"]}
    found = candidates.get(name.rsplit(".", 1)[-1])
    if found is None:
        raise ConfigurationError(
            f"Unknown setting {name!r}. Known: {', '.join(sorted(candidates))}.", field=name
        )
    reference = found.get("$ref", "").rsplit("/", 1)[-1]
    return {**definitions.get(reference, {}), **found}
