"""`setup_optimization_serving`: the control plane inside somebody else's FastAPI application."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from fastapi import FastAPI

from loadwise.app.lifespan import close_with
from loadwise.app.reports import report_dir, report_limits
from loadwise.app.sinks import alerting
from loadwise.gateway.auth import Guard
from loadwise.gateway.control_plane import include_control_plane
from loadwise.gateway.pages import include_pages
from loadwise.gateway.serving import OptimizationServingMixin
from loadwise.optimizer.control import OptimizationControl
from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer
from loadwise.settings import OptimizationConfig, load_settings


async def setup_optimization_serving(
    app: FastAPI,
    engine: Any,
    *,
    model_config: Any = None,
    optimization_config: OptimizationConfig | None = None,
    admin_key: str | None = None,
    metrics_collector: Any = None,
    alert_manager: Any = None,
) -> OptimizationServingMixin:
    """Adds `/v1/optimization/*` to `app`, starts optimising `engine`, and returns the mixin.

    What is not given comes from the environment (`LOADWISE_ADMIN_KEY`, `LOADWISE_REPORT_DIR` ...).
    Without an admin key the routes that change something answer 403 naming it. The optimizer stops
    with the application; set up inside a lifespan that already runs, end it with
    `await mixin.optimizer.close()`.
    """
    settings = load_settings(admin_key=admin_key)
    optimizer = ServerSideOptimizer(
        engine_client=engine,
        model_config=model_config,
        optimization_config=optimization_config or settings.optimization,
        metrics_collector=metrics_collector,
        alert_manager=alert_manager,
    )
    control = OptimizationControl(
        optimizer, report_dir=report_dir(settings), report_limits=report_limits(settings)
    )
    mixin = OptimizationServingMixin(control, optimizer)
    key = settings.admin_key
    include_control_plane(app, mixin, Guard.for_plugin(None if key is None else key.get_secret_value()))
    include_pages(app)
    if settings.metrics_dir is not None:
        optimizer.telemetry.share(settings.metrics_dir)
    parts = AsyncExitStack()
    await parts.enter_async_context(alerting(settings.alerts, optimizer, optimizer.clock))
    parts.push_async_callback(optimizer.close)
    close_with(app, parts.aclose)
    await optimizer.start_optimization()
    return mixin
