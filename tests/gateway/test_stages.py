"""The page's stages are the means of what `loadwise explain` tells of each request."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import aiohttp
import pytest

from loadwise.clock import SystemClock
from loadwise.decision.facts import HostReading
from loadwise.engines.rendering.engine import RenderedEngine
from loadwise.gateway.build import build_gateway
from loadwise.optimizer.factory import build
from loadwise.optimizer.fleet import MemberParts, single
from loadwise.settings import OptimizationConfig, Settings
from loadwise.telemetry.journal.explain import explain
from loadwise.telemetry.journal.journal import Journal, Limits
from loadwise.telemetry.journal.reader import Reader
from loadwise.telemetry.journal.story import told
from loadwise.testing.fakes import FakeTokenEngine, Turnstile

BODY = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], "stream": True}


class QuietHost:
    """A machine that does nothing."""

    def read(self) -> HostReading:
        return HostReading(read_s=0.0, cpu_usage_percent=5.0, memory_usage_percent=20.0)


async def test_the_page_and_the_stories_tell_the_same_of_a_queue(
    site_of, on_socket, tokenizer_folder, tmp_path, when
):
    clock, pace = SystemClock(), Turnstile()
    tokens = FakeTokenEngine(answer_length=3, capacity=1, queue_limit=8, clock=clock, pace=pace)
    engine = RenderedEngine(tokens, tokenizer_folder, "only", "only/0", clock)
    await engine.start()
    member = replace(single("only", quality=0.5, weight=1.0), capabilities=engine.capabilities)
    config = OptimizationConfig(
        enable_torch_compile=False, refuse_late=False,
        experiment={"block_share": 0.0, "conversation_share": 0.0},
    )  # fmt: skip
    parts = MemberParts(member=member, engines={"only/0": engine})
    made = build(config, [parts], host=QuietHost(), state_dir=tmp_path)
    await made.optimizer.chronicle.open(Journal(tmp_path / "journal", clock, Limits()))
    await made.optimizer.start_optimization()
    site = site_of()
    site.app = build_gateway(Settings(), made.director, made.control, made.telemetry, clock)
    async with on_socket(site), aiohttp.ClientSession(site.url) as client:

        async def ask() -> str:
            async with client.post("/v1/chat/completions", json=BODY) as answer:
                await answer.read()
                assert answer.status == 200
                return answer.headers["x-request-id"]

        asked = [asyncio.create_task(ask()) for _ in range(4)]
        await when(lambda: len(made.director.in_flight) == 4)
        pace.allow(100)
        ids = await asyncio.gather(*asked)
        shown = (await made.control.read("live"))["diagnosis"]["stages"]
    made.optimizer.chronicle.journal.flush()
    with Reader(tmp_path / "journal") as reader:
        stories = [explain(reader, request_id) for request_id in ids]
    await made.optimizer.close()
    await engine.close()

    ended = [story["attempts"][0]["ended"] for story in stories]
    for stage in shown:
        each = [one["stages"][f"{stage['name']}_s"] for one in ended]
        assert stage["mean_s"] == pytest.approx(sum(each) / len(each)), stage
    assert all(0.0 <= one["stages"]["queue_s"] <= one["time_to_first_token_s"] for one in ended)
    assert all(one["stages"]["gateway_s"] > 0.0 for one in ended)
    said = told(stories[0])
    assert "Of its time: gateway" in said
    assert "the queue's is estimated where its engine does not tell it" in said
