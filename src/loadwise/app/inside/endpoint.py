"""The endpoint plugin of Aphrodite Engine and vLLM: their server gets our routes and our middleware."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI

from loadwise.app.inside.adapters import RuntimeAdapters
from loadwise.app.inside.presence import Presence
from loadwise.app.lifespan import close_with
from loadwise.app.logs import configure_logs
from loadwise.clock import SystemClock
from loadwise.engines.inside.compiled import asked
from loadwise.engines.inside.description import EngineDescription, describe
from loadwise.gateway.auth import Guard
from loadwise.gateway.control_plane import include_control_plane
from loadwise.gateway.inside import Inside
from loadwise.gateway.serving import OptimizationServingMixin
from loadwise.logs import ROOT, get_logger
from loadwise.settings import Settings, load_settings

log = get_logger(__name__)
# The attribute of an engine client that holds its whole configuration.
_CONFIGS: Final[Mapping[str, str]] = {"vllm": "vllm_config", "aphrodite": "aphrodite_config"}


class EndpointPlugin:
    """What the engine's server calls: `attach_router` while it is built, then `init_state`."""

    name = "loadwise"
    required_tasks = ("generate",)

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._presence: Presence | None = None
        self._asking: asyncio.Task[None] | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Adds `/v1/optimization/*`, and middleware that stands behind the engine's authentication."""
        settings = _settings()
        if settings is None:
            return
        if not logging.getLogger().handlers:
            # Engines set up their own loggers only; ours would say nothing.
            configure_logs(settings.log_level, of=ROOT)
        presence = self._presence = Presence(settings, SystemClock())
        key = settings.admin_key
        guard = Guard.for_plugin(None if key is None else key.get_secret_value())
        include_control_plane(app, OptimizationServingMixin(presence), guard)
        app.add_middleware(
            Inside,
            deciding=presence.desk,
            clock=presence.clock,
            names=presence.names,
            body_limit_bytes=settings.body_limit_bytes,
        )
        close_with(app, presence.close)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Optimisation begins; nothing happens for a server without an engine."""
        presence = self._presence
        if presence is None or engine_client is None:
            return
        config = getattr(engine_client, _CONFIGS[self._engine], None)
        served = getattr(state, "openai_serving_models", None)
        adapters = None if served is None else RuntimeAdapters(self._engine, served, presence.model_dir)
        description = describe(self._engine, config, args)
        presence.begin(description, adapters)
        self._asking = asyncio.create_task(self._ask(engine_client, description))

    async def _ask(self, engine_client: Any, description: EngineDescription) -> None:
        """What the engine's workers compiled is in the description; they answer between two steps."""
        description.compilation.update(await asked(self._engine, engine_client))


def _settings() -> Settings | None:
    """The settings of the environment; None, told of, where they are wrong: the engine serves without us."""
    try:
        return load_settings()
    except Exception as error:  # noqa: BLE001 - whatever is wrong with ours, the engine starts
        log.error("loadwise_not_attached", reason=str(error), remedy="Correct it and restart the engine.")
        return None


def aphrodite() -> EndpointPlugin:
    """The entry point `aphrodite.endpoint_plugins`."""
    return EndpointPlugin("aphrodite")


def vllm() -> EndpointPlugin:
    """The entry point `vllm.endpoint_plugins`."""
    return EndpointPlugin("vllm")
