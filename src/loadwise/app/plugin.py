"""`setup_optimization_serving`: the control plane inside somebody else's FastAPI application."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI

from loadwise.gateway.auth import Guard
from loadwise.gateway.control_plane import include_control_plane
from loadwise.gateway.serving import OptimizationServingMixin
from loadwise.optimizer.control import OptimizationControl
from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer
from loadwise.settings import OptimizationConfig


async def setup_optimization_serving(
    app: FastAPI,
    engine: Any,
    *,
    model_config: Any = None,
    optimization_config: OptimizationConfig | None = None,
    admin_key: str | None = None,
) -> OptimizationServingMixin:
    """Adds `/v1/optimization/*` to `app`, starts optimising `engine`, and returns the mixin.

    The optimizer stops with the application. Without an admin key (the argument, or
    `LOADWISE_ADMIN_KEY`) the routes that change something answer 403 naming it.
    """
    optimizer = ServerSideOptimizer(
        engine_client=engine, model_config=model_config, optimization_config=optimization_config
    )
    mixin = OptimizationServingMixin(OptimizationControl(optimizer), optimizer)
    guard = Guard.for_plugin(admin_key or os.environ.get("LOADWISE_ADMIN_KEY"))
    include_control_plane(app, mixin, guard)
    app.router.on_shutdown.append(optimizer.close)
    await optimizer.start_optimization()
    return mixin
