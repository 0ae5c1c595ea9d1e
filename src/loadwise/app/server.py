"""`loadwise serve`: settings in, a running server out."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from loadwise.app.journaling import remember
from loadwise.app.limits import shared_limits
from loadwise.app.logs import configure_logs
from loadwise.app.members import Members
from loadwise.app.reports import report_dir, report_limits
from loadwise.app.sinks import alerting
from loadwise.clock import SystemClock
from loadwise.compiler import ModelCompiler
from loadwise.compiler.store import PackageStore
from loadwise.compiler.workshop import Workshop
from loadwise.engines.catalogue import Catalogue
from loadwise.gateway.build import Places, build_listeners, taken
from loadwise.gateway.server import Listener, run, serve
from loadwise.logs import get_logger
from loadwise.optimizer.factory import Optimization, build
from loadwise.settings import Settings
from loadwise.telemetry.tracing import open_tracing

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A composed server: what answers, and where it listens."""

    optimization: Optimization
    listeners: tuple[Listener, ...]


@asynccontextmanager
async def composed(settings: Settings, workshop: Workshop | None = None) -> AsyncIterator[Server]:
    """A server with its engines running; everything it opened is closed afterwards.

    `workshop` makes its builds; by default the backends that the settings name.
    """
    # A port in use is said before models are loaded, which may take minutes.
    with taken(settings) as places:
        async with _opened(settings, places, workshop) as server:
            yield server


@asynccontextmanager
async def _opened(settings: Settings, places: Places, workshop: Workshop | None) -> AsyncIterator[Server]:
    clock = SystemClock()
    tracing = open_tracing(settings.tracing)
    compiler = ModelCompiler(
        settings.optimization, workshop=workshop or _workshop(settings), clock=clock, automatic=False
    )
    compile_step = compiler.compile_model if settings.optimization.enable_torch_compile else None
    members = Members(settings, Catalogue(settings, clock, compile_step=compile_step))
    try:
        made = build(
            settings.optimization,
            await members.open_all(),
            routes=settings.routes,
            catalogue=members,
            model_compiler=compiler,
            state_dir=settings.state_dir,
            report_dir=report_dir(settings),
            report_limits=report_limits(settings),
            clock=clock,
        )
        try:
            journal = settings.journal.directory or settings.state_dir / "journal"
            await remember(settings.journal, journal, made.optimizer)
            if settings.metrics_dir is not None:
                made.telemetry.share(settings.metrics_dir)
            listeners = build_listeners(
                places, settings, made.director, made.control, made.telemetry, clock, tracing
            )
            with shared_limits(settings, made.optimizer):
                async with alerting(settings.alerts, made.optimizer, clock):
                    yield Server(optimization=made, listeners=tuple(listeners))
        finally:
            await made.optimizer.close()
    finally:
        await members.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)


async def serve_forever(settings: Settings) -> None:
    """Serves until SIGINT or SIGTERM; answers in flight are finished first."""
    async with composed(settings) as server:
        optimizer = server.optimization.optimizer
        if settings.bypass:
            optimizer.bypass()
        else:
            await optimizer.start_optimization()

        def ready() -> None:
            members = [card.model_id for card in optimizer.director.models()]
            log.info("serving", **addresses(server), members=members)

        settle()
        await serve(server.listeners, ready)


def settle() -> None:
    """What is here now lives as long as the server: searching it for garbage would only stop requests."""
    gc.collect()
    gc.freeze()


def _workshop(settings: Settings) -> Workshop:
    wanted = settings.optimization
    store = PackageStore(settings.cache_dir / "builds", wanted.build_store_bytes)
    return Workshop.keeping(wanted.build_backends, store, settings.cache_dir / "building")


def addresses(server: Server) -> dict[str, str]:
    """Where the server really answers, also where it was asked for any free port."""
    names = ("url", "admin_url")
    return {
        name: _url(listener.host, listener.port)
        for name, listener in zip(names, server.listeners, strict=False)
    }


def _url(host: str, port: int) -> str:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        version = 4
    return f"http://[{host}]:{port}" if version == 6 else f"http://{host}:{port}"


def run_server(settings: Settings) -> None:
    """`loadwise serve`: returns when the server was stopped."""
    configure_logs(settings.log_level)
    run(serve_forever(settings))
