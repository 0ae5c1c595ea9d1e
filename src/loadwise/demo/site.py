"""The demonstration's site: three simulated engines behind a real server, and what can be made to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from loadwise.app.server import Server, composed
from loadwise.compiler.backends import default_backend
from loadwise.compiler.workshop import Workshop
from loadwise.demo.build import FaultyBackend
from loadwise.demo.day import Event
from loadwise.settings import Settings, load_settings
from loadwise.testing.simulated import SimulatedEngine, Speed

# A model's name, quality and speed; what a large, a medium and a small model are to one another.
ENGINES: Final[Mapping[str, tuple[float, Speed]]] = {
    "large": (0.95, Speed(places=8, first_token_s=0.09, per_token_s=0.018, full=2.2)),
    "regional": (0.85, Speed(places=12, first_token_s=0.06, per_token_s=0.012, full=2.0)),
    "small": (0.60, Speed(places=32, first_token_s=0.025, per_token_s=0.005, full=2.0)),
}
OPTIMIZATION: Final = {
    "ensemble_strategy": "adaptive",
    "tuning_interval_sec": 2.0,
    "dwell_sec": 4.0,
    "experiment": {"block_share": 0.25, "block_sec": 4.0, "burn_in_sec": 1.0},
    "load_threshold_high": 0.7,
    "load_threshold_low": 0.25,
    "alert_latency_ms": 2000.0,
    "objectives": {"time_to_first_token_s": 0.4, "time_per_output_token_s": 0.05},
}
BUILT: Final = "large"


@dataclass(slots=True, kw_only=True)
class Site:
    """A running demonstration."""

    url: str
    server: Server
    engines: Mapping[str, SimulatedEngine]
    backend: FaultyBackend
    builds: bool

    async def happen(self, event: Event) -> None:
        """The event has happened: a member was given a fault, or a build fails."""
        if event.member is not None:
            await self._set_fault(event.member, event.what)
        elif self.builds:
            self.backend.fails = True
            _build(self.server)

    async def _set_fault(self, member: str, fault: str) -> None:
        """Over the simulated engine's own route, which a real engine does not have."""
        url = f"{self.engines[member].url}/faults"
        async with aiohttp.ClientSession() as client, client.post(url, json={"fault": fault}) as answer:
            answer.raise_for_status()


@asynccontextmanager
async def opened(folder: Path, port: int) -> AsyncIterator[Site]:
    """The site answers on 127.0.0.1; everything it opened is closed afterwards."""
    async with AsyncExitStack() as stack:
        engines = {name: SimulatedEngine(name, speed) for name, (_, speed) in ENGINES.items()}
        for engine in engines.values():
            await engine.start()
            stack.push_async_callback(engine.close)
        backend = FaultyBackend(default_backend())
        server = await stack.enter_async_context(
            composed(_settings(folder, port, engines), Workshop.of(backend))
        )
        builds = await asyncio.to_thread(_has_torch)
        await server.optimization.optimizer.start_optimization()
        listener = server.listeners[0]
        running = asyncio.create_task(listener.run())
        try:
            url = f"http://127.0.0.1:{listener.port}"
            yield Site(url=url, server=server, engines=engines, backend=backend, builds=builds)
        finally:
            listener.stop()
            await running


def _settings(folder: Path, port: int, engines: Mapping[str, SimulatedEngine]) -> Settings:
    upstreams: dict[str, Any] = {
        name: {
            "url": engines[name].url,
            "pool": name,
            "quality": quality,
            "capacity_requests": speed.places,
        }
        for name, (quality, speed) in ENGINES.items()
    }
    return load_settings(
        host="127.0.0.1",
        port=port,
        state_dir=folder / "state",
        cache_dir=folder / "cache",
        report_dir=folder,
        upstreams=upstreams,
        optimization=OPTIMIZATION,
    )


def _has_torch() -> bool:
    """Whether there is something that builds; it is loaded then, which takes seconds."""
    try:
        import torch
    except ImportError:
        return False
    return torch is not None


def _build(server: Server) -> None:
    """A build has begun, of a small module that stands for a member's model."""
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64)).eval()
    compiler = server.optimization.optimizer.model_compiler
    compiler.compile_model(model, BUILT, examples=lambda: [(torch.zeros(4, 64),)])
    compiler.build(BUILT)
