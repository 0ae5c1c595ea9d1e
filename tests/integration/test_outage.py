"""A member whose upstreams all fail, over real sockets: it is left in peace, and back once one answers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from loadwise.app.server import composed
from loadwise.decision.outage import FIRST_PROBE_S
from loadwise.settings import load_settings
from loadwise.telemetry.journal.explain import explain
from loadwise.telemetry.journal.reader import Reader
from loadwise.telemetry.journal.replay import replay
from loadwise.telemetry.journal.story import told
from loadwise.testing import StubUpstream

CHAT: dict[str, Any] = {
    "model": "auto", "max_tokens": 4, "messages": [{"role": "user", "content": "Why?"}],
}  # fmt: skip
PATIENCE_S = 60.0


@dataclass
class Place:
    """A server of ours before two upstreams of one member, and what its clients saw."""

    url: str
    state: Path
    stubs: list[StubUpstream]
    client: aiohttp.ClientSession
    seen: Counter[int] = field(default_factory=Counter)
    # The latest refusal: its request id.
    refused: str = ""

    async def ask(self) -> int:
        async with self.client.post(f"{self.url}/v1/chat/completions", json=CHAT) as answer:
            self.seen[answer.status] += 1
            if answer.status == 503:
                self.refused = answer.headers["x-request-id"]
                assert answer.headers["retry-after"] == "1"
                error = (await answer.json())["error"]
                assert (error["type"], error["param"], error["code"]) == (
                    "server_error", None, "nobody_answers",
                )  # fmt: skip
            return answer.status

    async def until(self, status: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.ask() != status:
                await asyncio.sleep(0.01)

    def answer_with(self, *statuses: int) -> None:
        for stub, status in zip(self.stubs, statuses, strict=True):
            stub.behaviour.status = status

    @property
    def attempts(self) -> int:
        return sum(request.method == "POST" for stub in self.stubs for request in stub.received)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    stubs = [StubUpstream(keep=10_000) for _ in range(2)]
    first, second = [await stub.start() for stub in stubs]
    settings = load_settings(
        port=0, state_dir=tmp_path, cache_dir=tmp_path / "cache",
        upstreams={"eu": {"url": first, "replicas": [second], "probe": False}},
    )  # fmt: skip
    async with composed(settings) as server, aiohttp.ClientSession() as client:
        tasks = [asyncio.create_task(listener.run()) for listener in server.listeners]
        await server.optimization.optimizer.start_optimization()
        try:
            yield Place(f"http://127.0.0.1:{server.listeners[0].port}", tmp_path, stubs, client)
        finally:
            for listener in server.listeners:
                listener.stop()
            await asyncio.gather(*tasks)
    for stub in stubs:
        await stub.close()


async def test_upstreams_that_all_fail_get_a_probe_now_and_then_and_everything_once_one_answers(
    place: Place,
) -> None:
    place.answer_with(500, 500)
    await place.until(503)
    shown, began_s = place.attempts, time.monotonic()
    for _ in range(100):
        await place.ask()
    # Whoever is not refused is a probe.
    assert place.attempts - shown <= 1 + (time.monotonic() - began_s) / FIRST_PROBE_S
    assert shown <= 8
    place.answer_with(500, 200)
    await place.until(200)
    place.answer_with(200, 200)
    assert [await place.ask() for _ in range(20)] == [200] * 20
    metrics = await (await place.client.get(f"{place.url}/metrics")).text()
    assert f'loadwise_refused_requests_total{{status="503"}} {place.seen[503]}' in metrics


async def test_one_that_fails_beside_another_refuses_nobody(place: Place) -> None:
    place.answer_with(500, 200)
    assert [await place.ask() for _ in range(60)] == [200] * 60


async def test_the_journal_tells_why_and_decides_it_again(place: Place) -> None:
    place.answer_with(500, 500)
    await place.until(503)
    place.answer_with(200, 200)
    await place.until(200)
    await place.client.get(f"{place.url}/v1/optimization/status")
    async with asyncio.timeout(PATIENCE_S):
        # The journal is written behind.
        while "Nobody could answer" not in (story := await asyncio.to_thread(story_of, place)):
            await asyncio.sleep(0.1)
    assert "attempts came to nothing" in story
    assert "refused with 503 (nobody_answers); it was told to come back after 1 s" in story
    with Reader(place.state / "journal") as reader:
        found = replay(reader.batches())
    assert found.exact, found.differences[:3]
    assert found.refusals >= 1


def story_of(place: Place) -> str:
    try:
        with Reader(place.state / "journal") as reader:
            return told(explain(reader, place.refused))
    except KeyError:
        return ""


async def test_a_client_waits_for_as_long_as_it_was_told_and_is_answered(place: Place) -> None:
    place.answer_with(500, 500)
    await place.until(503)
    place.answer_with(200, 200)
    async with AsyncOpenAI(base_url=f"{place.url}/v1", api_key="none", max_retries=20) as client:
        answer = await client.chat.completions.create(**CHAT)
    assert answer.choices
