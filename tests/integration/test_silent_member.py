"""A member whose streams hang: through a whole gateway, on a clock of its own, it leaves and comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from loadwise.decision.beliefs import Health
from loadwise.decision.facts import EngineReading, HostReading
from loadwise.gateway.build import build_gateway
from loadwise.gateway.gateway import Gateway
from loadwise.optimizer import MemberParts, Optimization, build
from loadwise.optimizer.fleet import single
from loadwise.ports import Alert
from loadwise.settings import OptimizationConfig, Settings
from loadwise.testing import FakeClock, FakeEngine

CHAT = b'{"model":"%s","messages":[{"role":"user","content":"hello"}],"stream":true}'


class QuietHost:
    """A machine that does nothing."""

    def read(self) -> HostReading:
        return HostReading(read_s=0.0, cpu_usage_percent=5.0, memory_usage_percent=20.0)


class CountingEngine(FakeEngine):
    """Says how many tokens come: none that nobody saw end."""

    async def observe(self) -> EngineReading:
        found = await super().observe()
        return replace(found, output_tokens_per_s=0.0, tokens_counted_live=False)


class Heard:
    """An alert sink that remembers names."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def deliver(self, alert: Alert) -> None:
        if not alert.resolved:
            self.names.append(alert.name)


@dataclass
class Place:
    """A gateway over two members, of which `hold` stops one before its next token."""

    app: Gateway
    made: Optimization
    clock: FakeClock
    heard: Heard
    flowing: asyncio.Event
    asked: list[asyncio.Task[str]] = field(default_factory=list)

    async def ask(self, model: str) -> str:
        """The member that answered a stream whole."""
        sent: list[dict[str, Any]] = []
        body = [{"type": "http.request", "body": CHAT % model.encode(), "more_body": False}]

        async def receive() -> dict[str, Any]:
            if body:
                return body.pop()
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

        async def send(message: Any) -> None:
            sent.append(dict(message))

        scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        }  # fmt: skip
        await self.app(scope, receive, send)
        assert sent[0]["status"] == 200, json.dumps(sent, default=repr)
        return dict(sent[0]["headers"])[b"x-loadwise-member"].decode()

    async def hang(self, count: int) -> None:
        """So many requests to the mute member wait for their next token."""
        self.flowing.clear()
        flights = self.made.director.in_flight
        self.asked = [asyncio.create_task(self.ask("mute")) for _ in range(count)]
        while flights.by_member.get("mute", 0) < count:
            await asyncio.sleep(0)

    async def second(self) -> str:
        """Time passes, somebody asks, the loop looks; the member that answered."""
        self.clock.advance(1.0)
        answered = await self.ask("auto")
        await self.made.optimizer.cycle.probe()
        self.made.optimizer.watch.evaluate()
        return answered

    @property
    def health(self) -> Health:
        return self.made.optimizer.ensemble_manager.beliefs["mute"].health


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    clock, heard, flowing = FakeClock(), Heard(), asyncio.Event()
    flowing.set()

    async def held() -> None:
        await flowing.wait()

    members = []
    for name, quality, more in (("mute", 1.0, {"pace": held}), ("other", 0.5, {})):
        engine = CountingEngine(model_id=name, replica_id=f"{name}/0", capacity=16, clock=clock, **more)  # type: ignore[arg-type]
        member = replace(single(name, quality=quality, weight=1.0), capabilities=engine.capabilities)
        members.append(MemberParts(member=member, engines={f"{name}/0": engine}))
    config = OptimizationConfig(
        enable_torch_compile=False, experiment={"block_share": 0.0, "conversation_share": 0.0}
    )
    made = build(config, members, host=QuietHost(), sinks=[heard], state_dir=tmp_path, clock=clock)
    made.director.running = True
    app = build_gateway(Settings(), made.director, made.control, made.telemetry, clock)
    place = Place(app, made, clock, heard, flowing)
    yield place
    flowing.set()
    await asyncio.gather(*place.asked)
    await made.optimizer.close()


async def test_a_member_whose_streams_hang_is_out_within_thirty_seconds(place: Place) -> None:
    for _ in range(5):
        await place.second()
    await place.hang(4)
    left_after = 0
    while place.health is Health.HEALTHY and left_after < 60:
        left_after += 1
        place.clock.advance(1.0)
        await place.made.optimizer.cycle.probe()
        place.made.optimizer.watch.evaluate()
    assert left_after <= 30
    assert {await place.second() for _ in range(40)} == {"other"}
    assert "silent_member" in place.heard.names
    assert "silent_member_serving" not in place.heard.names


async def test_it_comes_back_by_itself_when_its_tokens_flow_again(place: Place) -> None:
    await place.second()
    await place.hang(4)
    for _ in range(25):
        place.clock.advance(1.0)
        await place.made.optimizer.cycle.probe()
    assert place.health is Health.OUT
    place.flowing.set()
    await asyncio.gather(*place.asked)
    seen = [place.health]
    for _ in range(90):
        await place.second()
        seen.append(place.health)
    assert list(dict.fromkeys(seen))[-2:] == [Health.RAMPING, Health.HEALTHY]
    assert await place.ask("mute") == "mute"


async def test_an_answer_whose_tokens_come_slowly_is_not_silence(place: Place) -> None:
    """Its engine tells of each token, so a stream of minutes keeps its member in."""
    await place.second()
    await place.hang(1)
    engine = place.made.optimizer.ensemble_manager.fleet.parts("mute").engines["mute/0"]

    async def observe() -> EngineReading:
        now_s = place.clock.monotonic_s()
        return EngineReading(
            replica_id="mute/0", read_s=now_s, output_tokens_per_s=0.5, last_token_s=now_s,
            tokens_counted_live=False,
        )  # fmt: skip

    engine.observe = observe
    for _ in range(120):
        place.clock.advance(1.0)
        await place.made.optimizer.cycle.probe()
    assert place.health is Health.HEALTHY
    assert isinstance(place.asked[0], asyncio.Task)
