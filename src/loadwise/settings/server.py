"""`Settings`: everything `loadwise serve` may be told, from command line, environment and file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import AnyHttpUrl, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from loadwise.decision.facts import Endpoint, EnsembleStrategy, Feature
from loadwise.errors import ConfigurationError
from loadwise.settings.checked import Checked, Fraction, Positive, describe, first_field
from loadwise.settings.optimization import PRESETS, Ceilings, ObjectiveSettings, OptimizationConfig
from loadwise.settings.terms import TagRuleSettings, TermSettings, require_allowed, require_any

Scope = Literal["infer", "metrics", "feedback", "admin:read", "admin:write"]

# Read elsewhere: where settings lie, where commands find a server, what tests of real engines use.
OTHER_VARIABLES = frozenset(
    {"LOADWISE_CONFIG", "LOADWISE_URL", "LOADWISE_ENGINES", "LOADWISE_GATEWAYS", "LOADWISE_KEEP_ANSWERS"}
)


class KeySettings(TagRuleSettings):
    """One key of `keys:`; only its SHA-256 is kept. Members that its tags keep out never answer it."""

    id: Annotated[str, Field(min_length=1, max_length=64)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: frozenset[Scope] = frozenset({"infer"})
    tenant: str = "default"
    optimize: bool = True
    ceilings: Ceilings = Field(default_factory=dict)


# Forms of a model as `loadwise compile` names them: unquantised ones, and variants with small weights.
FormName = Literal[
    "openvino/fp32", "openvino/fp16", "openvino/bf16", "openvino/int8", "openvino/int4", "torchao/int8"
]


class ModelSettings(TermSettings):
    """A model folder served in this process.

    Without a `form` the fastest one that `loadwise compile` found right is served. A quantised form is a
    variant: a member with the quality that `loadwise compile` measured.
    """

    path: Path
    engine: Literal["auto", "openvino", "torch"] = "auto"
    form: FormName | None = None
    # Where torch runs it: cpu, cuda or cuda:0; OpenVINO serves on the processor.
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:[0-9]+)?)$")] = "cpu"
    quality: Fraction | None = None
    weight: Positive = 1.0
    standby: bool = False

    @model_validator(mode="after")
    def _form_names_its_engine(self) -> ModelSettings:
        if self.form is not None and self.engine != "auto":
            raise ConfigurationError(
                f"form {self.form!r} says which engine serves; leave engine out.", field="form"
            )
        if self.device != "cpu" and (self.engine == "openvino" or (self.form or "").startswith("openvino/")):
            raise ConfigurationError(
                f"OpenVINO serves on the processor; device {self.device!r} needs engine: torch.",
                field="device",
            )
        return self


class UpstreamSettings(TermSettings):
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
    # What it serves; None: not known, so nothing is refused on its behalf.
    endpoints: frozenset[Endpoint] | None = None
    # See what it can do with a few small requests when it joins; `features` are vouched for besides.
    probe: bool = True
    features: frozenset[Feature] = frozenset()
    quality: Fraction | None = None
    weight: Positive = 1.0
    standby: bool = False

    @model_validator(mode="after")
    def _addresses_hold_no_password(self) -> UpstreamSettings:
        """Addresses are shown and logged, and nothing of theirs but the path is sent."""
        for field, urls in (("url", (self.url,)), ("replicas", self.replicas)):
            if any(url.username or url.password for url in urls):
                raise ConfigurationError(
                    f"{field} must hold no user name or password; name its key by api_key_env.", field=field
                )
        return self


class EngineMemberSettings(Checked):
    """A model of the engine that loadwise runs inside: its own, or an adapter it was started with."""

    quality: Fraction | None = None
    weight: Positive = 1.0
    standby: bool = False


class RouteSettings(TagRuleSettings):
    """A public model name and the members that may answer it, in order of preference.

    Without `members` all that its tags allow, in the order of the settings.
    """

    members: tuple[str, ...] = ()
    default_member: str | None = None
    objectives: ObjectiveSettings | None = None
    ensemble_strategy: EnsembleStrategy | None = None
    quality_floor: Fraction | None = None
    # How much the price of an answer counts beside quality and speed: 0 not at all, 1 alone.
    price_weight: Fraction = 0.0

    @model_validator(mode="after")
    def _has_its_default(self) -> RouteSettings:
        if not self.members and not self.rule:
            raise ConfigurationError(
                "members must name at least one member, or require_tags or forbid_tags say which answer.",
                field="members",
            )
        if self.members and self.default_member is not None and self.default_member not in self.members:
            raise ConfigurationError(
                f"default_member {self.default_member!r} is none of the route's members: "
                f"{', '.join(self.members)}",
                field="default_member",
            )
        return self


class TimeoutSettings(Checked):
    """How long each stage towards an upstream may take, in seconds."""

    connect_s: Positive = 5.0
    first_byte_s: Positive = 120.0
    idle_s: Positive = 60.0
    total_s: Positive = 1800.0


class JournalSettings(Checked):
    """What is kept of decisions and how they went; no prompts, no keys."""

    enabled: bool = True
    # None: the folder journal under state_dir.
    directory: Path | None = None
    # The newest rows within this size and this age stay.
    max_bytes: Annotated[int, Field(ge=1024**2)] = 40 * 1024**2
    max_age_sec: Positive = 14 * 86_400.0
    # Events that may wait for the disk; beyond it they are dropped and counted.
    queue_size: Annotated[int, Field(ge=1)] = 20_000


class WebhookSettings(Checked):
    """An address that alerts are posted to as JSON."""

    url: AnyHttpUrl
    # Name of the environment variable that holds the value of its Authorization header.
    authorization_env: str | None = None

    def headers(self) -> dict[str, str]:
        """The headers of a delivery; `ConfigurationError` when the variable is not set."""
        if self.authorization_env is None:
            return {}
        value = os.environ.get(self.authorization_env)
        if not value:
            raise ConfigurationError(
                f"alerts.webhooks: authorization_env names {self.authorization_env}, which is not set.",
                field="alerts.webhooks",
            )
        return {"authorization": value}


class TracingSettings(Checked):
    """Where spans go (the extra `otel`), and of how many requests without a sampled caller."""

    # OTLP over HTTP, for example http://127.0.0.1:4318/v1/traces.
    endpoint: AnyHttpUrl
    sample_ratio: Fraction = 1.0
    service_name: str = "loadwise"
    # Put prompts into spans; answers never are.
    prompts: bool = False


class AlertSettings(Checked):
    """Where alerts go beside the log; addresses can be set here only, never over HTTP."""

    webhooks: tuple[WebhookSettings, ...] = ()
    # Base addresses of Alertmanagers, for example http://127.0.0.1:9093.
    alertmanagers: tuple[AnyHttpUrl, ...] = ()
    # Alerts that wait in one sink while it is down; further ones are dropped and counted.
    queue_size: Annotated[int, Field(ge=1, le=100_000)] = 1000


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
    # Inside Aphrodite Engine or vLLM: the adapters that are members, and the engine's own model.
    engine_members: Mapping[str, EngineMemberSettings] = Field(default_factory=dict)
    optimization: OptimizationConfig = OptimizationConfig()

    timeouts: TimeoutSettings = TimeoutSettings()
    alerts: AlertSettings = AlertSettings()
    tracing: TracingSettings | None = None
    body_limit_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024**2
    # Requests that may wait in one embedded engine before 429, and run at once.
    queue_limit: Annotated[int, Field(ge=0)] = 128
    max_running: Annotated[int, Field(ge=1)] = 32
    # Bytes of key/value cache of one embedded member.
    kv_cache_bytes: Annotated[int, Field(ge=1024**2)] = 64 * 1024**2
    state_dir: Path = Field(default_factory=_state_home)
    cache_dir: Path = Field(default_factory=_cache_home)
    # None: the folder reports under state_dir. Files of exported reports that stay there, and their bytes
    # together: the oldest reports make room.
    report_dir: Path | None = None
    report_max_files: Annotated[int, Field(ge=3)] = 300
    report_max_bytes: Annotated[int, Field(ge=1024**2)] = 32 * 1024**2
    # Prompts that builds are held against, one per line or JSON lines. None: those beside the model.
    build_prompts: Path | None = None
    journal: JournalSettings = JournalSettings()
    # A folder that worker processes share: /metrics of each answers for all, and limits hold over all.
    metrics_dir: Path | None = None
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
            return {**values, "optimization": _over(PRESETS[preset], values.get("optimization") or {})}
        return values

    @model_validator(mode="after")
    def _guarded(self) -> Settings:
        loopback = self.host in {"localhost", "::1"} or self.host.startswith("127.")
        if not loopback and self.api_key is None and not self.keys:
            raise ConfigurationError(
                f"host {self.host} is reachable from outside and no key is set: set api_key (--api-key or "
                "LOADWISE_API_KEY) or keys, or listen on 127.0.0.1",
                field="host",
            )
        if self.admin_port and self.admin_port == self.port:
            raise ConfigurationError(
                f"admin_port is {self.port}, which is the port too: choose another, or leave it out and one "
                "listener serves everything",
                field="admin_port",
            )
        both = sorted(set(self.models) & set(self.upstreams))
        if both:
            raise ValueError(f"{both[0]!r} is named both as a model and as an upstream; names must differ")
        for field in ("id", "sha256"):
            given = [getattr(key, field) for key in self.keys]
            if len(set(given)) < len(given):
                raise ConfigurationError(
                    f"keys: two entries have the same {field}; give each its own", field="keys"
                )
        return self

    @model_validator(mode="after")
    def _tags_leave_somebody(self) -> Settings:
        if not self.models and not self.upstreams:
            return self
        tags = {name: member.tags for name, member in {**self.models, **self.upstreams}.items()}
        for name, route in self.routes.items():
            named = {member: tags[member] for member in route.members if member in tags}
            require_allowed(route.rule, f"routes.{name}", named)
            require_any(route.rule, f"routes.{name}", tags)
        for key in self.keys:
            require_any(key.rule, f"keys.{key.id}", tags)
        return self


def _over(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` over `base`, group by group: what a group leaves out stays the preset's."""
    merged = {**base, **given}
    for name, value in base.items():
        if isinstance(value, Mapping) and isinstance(given.get(name), Mapping):
            merged[name] = _over(value, given[name])
    return merged


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Settings from file, environment and overrides (the command line's), or `ConfigurationError`.

    Without `config` the file is the one that LOADWISE_CONFIG names, if any.
    """
    _refuse_unknown_variables()
    named = os.environ.get("LOADWISE_CONFIG")
    if config is None and named:
        config = Path(named)
    source = type("Settings", (Settings,), {"_file": config, "__module__": __name__})
    try:
        loaded: Settings = source(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise ConfigurationError(describe(error), field=first_field(error)) from None
    return loaded


def _refuse_unknown_variables() -> None:
    """A misspelt key in the environment would leave a server open that its operator believes closed."""
    prefix = Settings.model_config.get("env_prefix", "")
    known = {prefix + name.upper() for name in Settings.model_fields} | OTHER_VARIABLES
    for variable in sorted(os.environ):
        if variable.upper().startswith(prefix) and variable.upper().partition("__")[0] not in known:
            near = get_close_matches(variable.upper(), sorted(known), n=1, cutoff=0.8)
            raise ConfigurationError(
                f"{variable} is set in the environment, and there is no such setting"
                f"{f' (there is {near[0]})' if near else ''}: {_unsetting(prefix)}.",
                field=variable,
            )


def _unsetting(prefix: str) -> str:
    if f"{prefix}SERVICE_HOST" in os.environ:
        return "Kubernetes sets such for a Service of this name; give the pod enableServiceLinks: false"
    return "unset it"


def explain_setting(name: str) -> dict[str, Any]:
    """A setting's type, default and range, by its (dotted) name; `ConfigurationError` for an unknown one."""
    schema = Settings.model_json_schema(mode="serialization")
    definitions = schema.get("$defs", {})
    found: dict[str, Any] = {}
    candidates = {**definitions["OptimizationConfig"]["properties"], **schema["properties"]}
    for part in name.split("."):
        if part not in candidates:
            raise ConfigurationError(
                f"Unknown setting {name!r}. Known: {', '.join(sorted(candidates)) or 'none below it'}.",
                field=name,
            )
        reference = candidates[part].get("$ref", "").rsplit("/", 1)[-1]
        found = {**definitions.get(reference, {}), **candidates[part]}
        candidates = found.get("properties", {})
    return found
