"""A desk with a real optimizer's plan, in front of an engine's server in miniature."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadwise.app.inside.members import optimization_inside
from loadwise.engines.inside.description import EngineDescription
from loadwise.engines.inside.merging import Views
from loadwise.optimizer.desk import Began, Desk, Ended
from loadwise.optimizer.factory import Optimization
from loadwise.optimizer.plan import plan_of
from loadwise.settings import EngineMemberSettings, OptimizationConfig, load_settings
from loadwise.testing import FakeClock

PATIENCE_S = 20.0


@dataclass
class Site:
    """An optimizer, and the desk that follows its plan."""

    made: Optimization
    desk: Desk
    views: Views
    clock: FakeClock

    def publish(self) -> None:
        serial = 1 if self.desk.plan is None else self.desk.plan.serial + 1
        self.desk.plan = plan_of(self.made.optimizer, serial)

    async def configure(self, **changes: Any) -> None:
        configurations = self.made.optimizer.configurations
        await configurations.apply(configurations.current.changed(changes))
        self.publish()

    def ended(self) -> list[Ended]:
        return [note for note in self.desk.notes if isinstance(note, Ended)]

    def began(self) -> list[Began]:
        return [note for note in self.desk.notes if isinstance(note, Began)]


@pytest.fixture
def describe() -> Callable[..., EngineDescription]:
    def make(**changes: Any) -> EngineDescription:
        known = {"engine": "vllm", "version": "0.32.0", "names": ("stub",), "context_tokens": 1024}
        return EngineDescription(**{**known, "capacity_requests": 8, "address": "a:1", **changes})

    return make


@pytest.fixture
async def site_of(tmp_path: Path, describe: Callable[..., EngineDescription]) -> Any:
    opened: list[Site] = []

    async def make(*adapters: str, **changes: Any) -> Site:
        clock = FakeClock()
        described = describe(adapters=adapters)
        views = Views(clock, replica_id="stub-0", capacity_requests=8)
        named = {name: EngineMemberSettings() for name in adapters}
        config = OptimizationConfig(
            **{"experiment": {"block_share": 0.0, "conversation_share": 0.0}, **changes}
        )
        settings = load_settings(state_dir=tmp_path, engine_members=named, optimization=config)
        made = optimization_inside(settings, described, views, clock, tmp_path)
        await made.optimizer.start_optimization()
        engine = next(iter(made.optimizer.ensemble_manager.fleet.engines().values()))
        site = Site(made, Desk(clock, engine), views, clock)
        site.publish()
        opened.append(site)
        return site

    yield make
    for site in opened:
        await site.made.optimizer.close()


@pytest.fixture
def until() -> Callable[..., Any]:
    async def wait(condition: Callable[[], Any]) -> None:
        """Waits until the condition holds, turn by turn of the event loop."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.005)

    return wait
