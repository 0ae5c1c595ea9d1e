"""Joins routes, handlers and guard into the gateway's ASGI applications."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import msgspec
from fastapi import FastAPI
from starlette.types import ASGIApp

from loadwise.decision.facts import Endpoint
from loadwise.gateway.asgi import Exchange, Message
from loadwise.gateway.auth import Guard
from loadwise.gateway.control_plane import include_control_plane
from loadwise.gateway.data_plane import DataPlane, Readiness, Telemetry
from loadwise.gateway.description import PAGE_HEADERS, described, page
from loadwise.gateway.gateway import Gateway, Handler
from loadwise.gateway.pages import page as dashboard_page
from loadwise.gateway.routes import (
    CONTROL_ROUTES,
    DATA_ROUTES,
    PAGE_ROUTES,
    PASSED_ROUTES,
    Plane,
    Route,
)
from loadwise.gateway.server import Listener, Place
from loadwise.gateway.serving import OptimizationServingMixin
from loadwise.gateway.traced import Tracing
from loadwise.ports import Clock, Control, Director
from loadwise.settings import Settings

ALL = frozenset(Plane)
DATA_ONLY = frozenset({Plane.DATA, Plane.BOTH})
CONTROL_ONLY = frozenset({Plane.CONTROL, Plane.BOTH})


def build_gateway(
    settings: Settings,
    director: Director,
    control: Control,
    telemetry: Telemetry,
    clock: Clock,
    planes: frozenset[Plane] | None = None,
    readiness: Readiness | None = None,
    tracing: Tracing | None = None,
) -> Gateway:
    """The application for `settings.port`: everything, or with an admin port the data plane only."""
    if planes is None:
        planes = ALL if settings.admin_port is None else DATA_ONLY
    readiness = readiness or Readiness()
    guard = Guard.for_server(settings)
    data = DataPlane(settings, director, telemetry, clock, readiness, tracing)
    app = control_app(OptimizationServingMixin(control), guard, lambda: readiness.draining)
    table: dict[str, dict[str, tuple[Handler, str | None]]] = {}
    for route in (*DATA_ROUTES, *PAGE_ROUTES):
        if route.plane in planes:
            handler = dashboard_page if route in PAGE_ROUTES else _handler(route, data, app)
            # The server leaves out the body of an answer to HEAD (RFC 9110, section 9.3.2).
            for method in (route.method, "HEAD") if route.method == "GET" else (route.method,):
                table.setdefault(route.path, {})[method] = (handler, route.scope)
    for route in CONTROL_ROUTES:
        if route.plane in planes:
            # The application's own dependency asks for the scope, as it does in a plugin.
            table.setdefault(route.path, {})[route.method] = (_mounted(app), None)
    return Gateway(table, guard, readiness, telemetry)


def _handler(route: Route, data: DataPlane, app: FastAPI) -> Handler:
    if route in PASSED_ROUTES:
        return data.passed(Endpoint(route.path))
    handler: Handler = _documentation(app, route.name) or getattr(data, route.name)
    return handler


def build_admin_gateway(
    settings: Settings,
    director: Director,
    control: Control,
    telemetry: Telemetry,
    clock: Clock,
    readiness: Readiness | None = None,
) -> Gateway:
    """The application for `settings.admin_port`: control plane, metrics, documentation, health."""
    return build_gateway(settings, director, control, telemetry, clock, CONTROL_ONLY, readiness)


@dataclass(frozen=True, slots=True)
class Places:
    """The addresses of a server: its port's, and its admin port's where there is one."""

    data: Place
    admin: Place | None = None


@contextmanager
def taken(settings: Settings) -> Generator[Places, None, None]:
    """The server's addresses, free again afterwards; `ConfigurationError` when one cannot be had."""
    with closing(Place(settings.host, settings.port)) as data:
        if settings.admin_port is None:
            yield Places(data)
            return
        with closing(Place(settings.host, settings.admin_port, "--admin-port")) as admin:
            yield Places(data, admin)


def build_listeners(
    places: Places,
    settings: Settings,
    director: Director,
    control: Control,
    telemetry: Telemetry,
    clock: Clock,
    tracing: Tracing | None = None,
) -> list[Listener]:
    """The listeners of a server, which drain together; its admin port's comes second."""
    readiness = Readiness()
    parts = (settings, director, control, telemetry, clock)
    listeners = [Listener(build_gateway(*parts, readiness=readiness, tracing=tracing), places.data)]
    if places.admin is not None:
        listeners.append(Listener(build_admin_gateway(*parts, readiness=readiness), places.admin))
    return listeners


def control_app(
    mixin: OptimizationServingMixin, guard: Guard, draining: Callable[[], bool] = lambda: False
) -> FastAPI:
    """A FastAPI application with nothing but the control plane."""
    app = FastAPI(
        title="loadwise",
        version=version("loadwise"),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    include_control_plane(app, mixin, guard, draining)
    return app


def _mounted(app: ASGIApp) -> Handler:
    async def handle(exchange: Exchange) -> None:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.started = True
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], *exchange.headers]
            await exchange.send(message)

        await app(exchange.scope, exchange.receive, send)

    return handle


def _documentation(app: FastAPI, name: str) -> Handler | None:
    async def docs(exchange: Exchange) -> None:
        await exchange.reply(200, page(described(app)), b"text/html; charset=utf-8", PAGE_HEADERS)

    async def openapi(exchange: Exchange) -> None:
        await exchange.reply(200, msgspec.json.encode(described(app)))

    return {"docs": docs, "openapi": openapi}.get(name)
