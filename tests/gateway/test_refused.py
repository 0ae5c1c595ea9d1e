"""Requests that no engine got are missed promises: a real server that sheds says how many."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import aiohttp
import pytest

from loadwise.clock import SystemClock
from loadwise.decision.facts import HostReading
from loadwise.engines.rendering.engine import RenderedEngine
from loadwise.errors import EngineError
from loadwise.gateway.build import build_gateway
from loadwise.optimizer.factory import build
from loadwise.optimizer.fleet import MemberParts, single
from loadwise.settings import OptimizationConfig, Settings
from loadwise.testing.fakes import FakeTokenEngine, Turnstile

BASE = "/v1/optimization"
CHAT = "/v1/chat/completions"
BODY = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}


class QuietHost:
    """A machine that does nothing."""

    def read(self) -> HostReading:
        return HostReading(read_s=0.0, cpu_usage_percent=5.0, memory_usage_percent=20.0)


class Forward(SystemClock):
    """The machine's clock, put forward by so much."""

    by_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.by_s


@pytest.fixture
async def site(site_of, on_socket, tokenizer_folder, tmp_path):
    """One member with a single place and no queue; it makes a step only when `pace` allows one."""
    clock, pace = Forward(), Turnstile()
    tokens = FakeTokenEngine(answer_length=2, capacity=1, queue_limit=0, clock=clock, pace=pace)
    engine = RenderedEngine(tokens, tokenizer_folder, "only", "only/0", clock)
    await engine.start()
    member = replace(single("only", quality=0.5, weight=1.0), capabilities=engine.capabilities)
    config = OptimizationConfig(
        enable_torch_compile=False, experiment={"block_share": 0.0, "conversation_share": 0.0}
    )
    parts = MemberParts(member=member, engines={"only/0": engine})
    folders = {"state_dir": tmp_path, "report_dir": tmp_path / "reports"}
    made = build(config, [parts], host=QuietHost(), clock=clock, **folders)
    await made.optimizer.start_optimization()
    site = site_of()
    site.app = build_gateway(Settings(), made.director, made.control, made.telemetry, clock)
    site.made, site.pace, site.engine, site.clock = made, pace, engine, clock
    async with on_socket(site):
        yield site
    await made.optimizer.close()
    await engine.close()


async def shed(site, when, refusals: int = 6) -> None:
    """One request is answered; while it runs, `refusals` others are turned away."""
    async with aiohttp.ClientSession(site.url) as client:

        async def ask() -> int:
            async with client.post(CHAT, json=BODY) as answer:
                await answer.read()
                return answer.status

        first = asyncio.create_task(ask())
        await when(lambda: len(site.made.director.in_flight) == 1)
        assert [await ask() for _ in range(refusals)] == [429] * refusals
        site.pace.allow(10)
        assert await first == 200


async def test_the_page_shows_how_many_requests_were_shed(site, when):
    await shed(site, when)
    frame = (await site.made.control.read("live"))["requests"]
    assert (frame["last_5m"], frame["failed_5m"], frame["refused_5m"]) == (1, 0, 6)
    assert frame["within_fraction_5m"] == pytest.approx(1 / 7)
    points = (await site.made.control.read("timeline"))["tracks"]["600"]["points"]
    assert sum(point["refused"] for point in points) == 6


async def test_the_night_text_names_the_refused_and_the_burn_counts_them(site, when):
    await shed(site, when)
    said = (await site.ask("GET", f"{BASE}/status", query="format=text")).body.decode()
    assert "1 reached an engine, 0 of them failed; 6 were refused before" in said
    assert "(6 of 7 missed)" in said
    assert "6 of 7 requests were refused in five minutes" in said


async def test_the_report_counts_the_refused_and_its_history_lists_them(site, when):
    await shed(site, when)
    report = (await site.ask("GET", f"{BASE}/report")).json()
    assert (report["total_requests"], report["refused_requests"]) == (7, 6)
    assert report["success_rate"] == pytest.approx(1 / 7)
    listed = [entry for entry in report["performance_history"] if entry["ending"] == "refused"]
    assert {(entry["model"], entry["route"], entry["success"]) for entry in listed} == {(None, "auto", False)}
    answered = next(row for row in report["objectives_met"] if row["objective"] == "answered without error")
    assert (answered["requests"], answered["met"]) == (7, pytest.approx(1 / 7))


async def test_shed_requests_burn_the_budget_that_pages(site, when):
    await shed(site, when, refusals=30)
    await site.made.optimizer.watch.stop()
    site.made.optimizer.watch.evaluate()
    # What lasts a minute is no mere beginning of a burst.
    site.clock.by_s = 60.0
    site.made.optimizer.watch.evaluate()
    burning = [alert for alert in site.made.optimizer.alerts.active() if alert.name == "objectives_burning"]
    assert [(alert.severity, alert.subject) for alert in burning] == [("page", "auto")]
    missed = (await site.ask("GET", "/metrics")).body.decode()
    assert 'loadwise_missed_objectives_total{member="none",route="auto"} 30.0' in missed


async def test_a_request_that_fails_in_the_gateway_is_a_missed_promise(site):
    async def broken(call):
        raise EngineError("the tokenizer is gone")

    site.made.director.measure = lambda model, call: broken(call)
    reply = await site.ask("POST", CHAT, BODY)
    assert reply.status == 502
    frame = (await site.made.control.read("live"))["requests"]
    assert (frame["last_5m"], frame["refused_5m"]) == (0, 1)


async def test_what_a_client_did_wrong_is_no_missed_promise(site):
    assert (await site.ask("POST", CHAT, {**BODY, "model": "nobody"})).status == 404
    assert (await site.ask("POST", CHAT, {**BODY, "tools": [{"type": "function"}]})).status == 400
    frame = (await site.made.control.read("live"))["requests"]
    assert (frame["last_5m"], frame["refused_5m"]) == (0, 0)
