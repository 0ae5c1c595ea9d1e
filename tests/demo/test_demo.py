"""The demonstration in seconds: traffic, faults and the report, as `make demo` runs it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp
import pytest

from loadwise.decision.facts import Endpoint
from loadwise.demo.build import FaultyBackend
from loadwise.demo.day import EVENTS, HOURS, hour_of, seconds, traffic
from loadwise.errors import BuildError
from loadwise.testing.simulated import Fault, SimulatedEngine, Speed


async def test_a_short_day_ends_with_its_report(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadwise.demo", "--minutes", "0.1", "--rate", "8", "--port", "0",
        "--no-browser", "--out", str(tmp_path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    assert "/dashboard" in said
    for event in EVENTS:
        assert event.story in said
    (page,) = tmp_path.glob("report-*.html")
    assert "Performance report" in page.read_text(encoding="utf-8")
    assert "The day is over" in said


async def test_a_port_that_is_taken_costs_one_line(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadwise.demo", "--port", str(port), "--out", str(tmp_path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, error = await process.communicate()
    server.close()
    assert process.returncode == 1
    assert error.decode().startswith("loadwise demo: Port")
    assert len(error.decode().splitlines()) == 1


def test_the_day_is_the_same_for_one_seed_and_has_the_rate_that_was_asked_for() -> None:
    day = list(traffic(20.0, 100.0, 1))
    assert day == list(traffic(20.0, 100.0, 1))
    assert len(day) == pytest.approx(2000, rel=0.1)
    noon = sum(40 <= arrival.t_s < 60 for arrival in day)
    night = sum(arrival.t_s < 10 or arrival.t_s >= 90 for arrival in day)
    assert noon > 2 * night


def test_events_come_in_order_within_the_day() -> None:
    hours = [event.hour for event in EVENTS]
    assert hours == sorted(hours)
    assert max(hours) < HOURS
    assert hour_of(seconds(13.5, 300.0), 300.0) == "13:30"


def test_every_fault_is_mended_before_the_day_ends() -> None:
    last = {event.member: event.what for event in EVENTS if event.member is not None}
    assert set(last.values()) == {"none"}
    assert {event.what for event in EVENTS if event.member} <= set(Fault)


async def test_a_simulated_engine_queues_beyond_its_places_and_fails_when_told() -> None:
    engine = SimulatedEngine("m", Speed(places=1, first_token_s=0.2, per_token_s=0.0))
    url = await engine.start()
    body = {"model": "m", "messages": [], "max_tokens": 2}
    async with aiohttp.ClientSession() as client:

        async def post(path: str, value: object) -> int:
            async with client.post(url + path, json=value) as answer:
                await answer.read()
                return answer.status

        asked = [asyncio.create_task(post(Endpoint.CHAT, body)) for _ in range(3)]
        while engine.waiting < 2:
            await asyncio.sleep(0.001)
        async with client.get(url + "/metrics") as answer:
            metrics = await answer.text()
        assert "vllm:num_requests_running 1\n" in metrics
        assert "vllm:num_requests_waiting 2\n" in metrics
        assert [await task for task in asked] == [200, 200, 200]
        assert await post("/faults", {"fault": "errors"}) == 200
        assert await post(Endpoint.CHAT, body) == 500
        assert await post("/faults", {"fault": "fire"}) == 400
        assert engine.fault is Fault.ERRORS
    await engine.close()


def test_a_build_fails_only_while_it_is_told_so(backend) -> None:
    faulty = FaultyBackend(backend)
    assert faulty.available() == backend.available()
    faulty.fails = True
    assert faulty.available().ok
    with pytest.raises(BuildError, match="injected by the demonstration"):
        faulty.build(None)


async def test_a_real_server_has_no_route_for_faults(tmp_path: Path) -> None:
    from loadwise.gateway.routes import CONTROL_ROUTES, DATA_ROUTES, PAGE_ROUTES

    paths = [route.path for route in (*CONTROL_ROUTES, *DATA_ROUTES, *PAGE_ROUTES)]
    assert paths
    assert not [path for path in paths if "fault" in path or "demo" in path]
