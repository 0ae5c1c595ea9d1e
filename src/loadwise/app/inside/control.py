"""The control plane inside an engine: the optimizer's own, and what the engine decides by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from loadwise.engines.inside.description import EngineDescription
from loadwise.errors import ConfigurationError, RequestError
from loadwise.optimizer.fleet import AUTO
from loadwise.ports import Command, Configure, Control, JsonObject, Recompile, View


class InsideControl:
    """`ports.Control` that shows the engine beside the optimizer and leaves compilation to the engine."""

    def __init__(
        self, control: Control, description: EngineDescription, shown: Callable[[], JsonObject]
    ) -> None:
        self._control = control
        self._description = description
        self._shown = shown

    async def read(self, view: View, **options: Any) -> JsonObject:
        """A view; where it shows builds it shows the engine's."""
        made = await self._control.read(view, **options)
        description = self._description
        if view in (View.STATUS, View.REPORT):
            made["compilation_stats"] = {description.model_id: description.compilation}
        if view is View.STATUS:
            made["inside"] = {
                "engine": description.engine,
                "version": description.version,
                "names": list(description.names),
                "adapters": list(description.adapters),
                **self._shown(),
            }
        return made

    async def apply(self, command: Command) -> JsonObject:
        """Raises `RequestError` 409 for a rebuild: the engine builds its models itself.

        `ConfigurationError` for a rollout that cannot be inside an engine.
        """
        if isinstance(command, Recompile):
            raise managed(self._description)
        if isinstance(command, Configure):
            require_possible(command.changes.get("rollout"))
        return await self._control.apply(command)


def managed(description: EngineDescription) -> RequestError:
    """The answer to who wants an engine's model built anew."""
    mode = description.compilation.get("mode") or "its default"
    return RequestError(
        f"{description.engine} compiles its models itself, when it starts (mode {mode}). It allows another "
        "mode by --compilation-config, none by --enforce-eager, and a fresh build by deleting its compile "
        "cache; each needs a restart of the engine.",
        status=409,
        code="managed_by_engine",
    )


def require_possible(rollout: Any) -> None:
    """Raises `ConfigurationError` for a rollout by what requests inside an engine do not have."""
    if not isinstance(rollout, Mapping):
        return
    if rollout.get("keys"):
        raise ConfigurationError(
            "rollout.keys cannot be set inside an engine: its own authentication reads the keys, and "
            "loadwise sees none of them. Set rollout.mode for all requests, or run loadwise in front of it.",
            field="rollout.keys",
        )
    others = sorted(set(rollout.get("routes") or ()) - {AUTO})
    if others:
        raise ConfigurationError(
            f"rollout.routes names {', '.join(others)}; inside an engine there is one route, {AUTO!r}.",
            field="rollout.routes",
        )
