"""Counters against ground truth: a real gateway over servers that fail in every way, counted at both ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from loadwise.app.server import composed
from loadwise.settings import load_settings
from loadwise.testing import Behaviour, StubUpstream
from loadwise.testing.upstream import PROMPT_TOKENS

CHAT = "/v1/chat/completions"
# In every request of a client, so that probes of the gateway are not counted with them.
PROMPT = "hello from a client"
REFUSED_URL = "http://127.0.0.1:9"
# What each server does, and how an attempt at it ends.
WAYS = {
    "good": (Behaviour(tokens=5), "succeeded"),
    "broken": (Behaviour(status=500), "failed"),
    "picky": (Behaviour(status=400), "client_error"),
    "full": (Behaviour(status=429), "failed"),
    "dies": (Behaviour(dies_after=2), "failed"),
    "hangs": (Behaviour(), "failed"),
    "gone": (None, "failed"),
}


@dataclass
class Truth:
    """What the clients saw, and what they did."""

    http: Counter[tuple[str, str]] = field(default_factory=Counter)
    attempts: Counter[tuple[str, str]] = field(default_factory=Counter)
    prompt_tokens: Counter[str] = field(default_factory=Counter)
    output_tokens: Counter[str] = field(default_factory=Counter)


@asynccontextmanager
async def stubs() -> AsyncIterator[dict[str, StubUpstream]]:
    made = {name: StubUpstream(way, keep=10_000) for name, (way, _) in WAYS.items() if way is not None}
    for stub in made.values():
        await stub.start()
    try:
        yield made
    finally:
        for stub in made.values():
            await stub.close()


@asynccontextmanager
async def gateway(servers: dict[str, StubUpstream], folder: Path) -> AsyncIterator[str]:
    urls = {name: {"url": servers[name].url if name in servers else REFUSED_URL} for name in WAYS}
    settings = load_settings(
        port=0, upstreams=urls, state_dir=folder / "state", cache_dir=folder / "cache",
        timeouts={"first_byte_s": 2.0},
        # Every server stays in the route, whatever it does.
        optimization={
            "max_ensemble_size": len(WAYS),
            "experiment": {"block_share": 0.0, "conversation_share": 0.0},
        },
    )  # fmt: skip
    async with composed(settings) as server:
        running = [asyncio.create_task(listener.run()) for listener in server.listeners]
        await server.optimization.optimizer.start_optimization()
        try:
            yield f"http://127.0.0.1:{server.listeners[0].port}"
        finally:
            for listener in server.listeners:
                listener.stop()
            await asyncio.gather(*running)


def body(model: str, *, stream: bool) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], "stream": stream}


async def asked(client: aiohttp.ClientSession, truth: Truth, model: str, *, stream: bool) -> None:
    """One request, to its end; what came back is the truth."""
    async with client.post(CHAT, json=body(model, stream=stream)) as answer:
        await answer.read()
        truth.http[CHAT, str(answer.status)] += 1
    _, ending = WAYS[model]
    # Only a stream can die in its middle.
    ended = "succeeded" if model == "dies" and not stream else ending
    truth.attempts[model, ended] += 1
    if ended == "succeeded":
        truth.prompt_tokens[model] += PROMPT_TOKENS
        truth.output_tokens[model] += 5 if model == "good" else 8


async def left(client: aiohttp.ClientSession, truth: Truth, stub: StubUpstream) -> None:
    """A client that leaves while the server is silent."""
    before = len(stub.received)
    request = asyncio.create_task(client.post(CHAT, json=body("hangs", stream=True)))
    async with asyncio.timeout(10):
        while len(stub.received) == before:
            await asyncio.sleep(0.001)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    truth.http[CHAT, "client_left"] += 1
    truth.attempts["hangs", "abandoned"] += 1


async def malformed(client: aiohttp.ClientSession, truth: Truth) -> None:
    """What never reaches an engine."""
    for path, content in ((CHAT, b"{"), (CHAT, b"[1]"), (CHAT, b'{"model":"nobody","messages":[]}')):
        async with client.post(path, data=content) as answer:
            truth.http[path, str(answer.status)] += 1
    for path in ("/nowhere", "/v1/%2e%2e/secret"):
        async with client.get(path) as answer:
            truth.http["none", str(answer.status)] += 1


async def counted(client: aiohttp.ClientSession) -> dict[str, dict[tuple[str, ...], float]]:
    """Every counter of /metrics by name and label values, once nothing is in flight."""
    async with asyncio.timeout(20):
        while True:
            async with client.get("/metrics") as answer:
                families = list(parse(await answer.text()))
            samples = [sample for family in families for sample in family.samples]
            busy = sum(s.value for s in samples if s.name == "loadwise_in_flight_requests")
            if not busy:
                break
            await asyncio.sleep(0.01)
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for sample in samples:
        found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


@pytest.mark.parametrize("rounds", [3])
async def test_counters_equal_what_clients_and_servers_counted(tmp_path: Path, rounds: int) -> None:
    truth = Truth()
    async with stubs() as servers, gateway(servers, tmp_path) as address:
        servers["hangs"].behaviour.hold = asyncio.Event()
        async with aiohttp.ClientSession(address) as client:
            for number in range(rounds):
                stream = number % 2 == 0
                await asyncio.gather(*(asked(client, truth, name, stream=stream) for name in WAYS))
                await left(client, truth, servers["hangs"])
                await malformed(client, truth)
            found = await counted(client)
        received = {
            name: sum(PROMPT.encode() in r.body for r in stub.received) for name, stub in servers.items()
        }

    attempts: Counter[tuple[str, str]] = Counter()
    for (ending, member, _), value in found["loadwise_requests_total"].items():
        attempts[member, ending] += int(value)
    assert attempts == truth.attempts
    http = {labels: int(value) for labels, value in found["loadwise_http_requests_total"].items()}
    http.pop(("/metrics", "200"), None)
    assert http == dict(truth.http)
    for name, total in received.items():
        # A server that refuses the usage that we ask for is asked once more, once.
        once_more = 1 if name == "picky" else 0
        assert sum(n for (member, _), n in truth.attempts.items() if member == name) in (
            total,
            total - once_more,
        )
    for word, expected in (("prompt", truth.prompt_tokens), ("output", truth.output_tokens)):
        tokens = found[f"loadwise_{word}_tokens_total"]
        assert {m: tokens[(m,)] for m in ("good",)} == {"good": expected["good"]}
    faults = {member for (member,), value in found["loadwise_faults_total"].items() if value}
    # A server that is full (429) is at no fault, nor is one that refuses a wrong request (400).
    assert faults == {"broken", "dies", "hangs", "gone"}
    decided = sum(found["loadwise_decisions_total"].values())
    assert decided == sum(truth.attempts.values())


async def test_a_request_that_is_tried_again_is_one_request_of_two_attempts(tmp_path: Path) -> None:
    async with stubs() as servers:
        settings = load_settings(
            port=0, state_dir=tmp_path / "state", cache_dir=tmp_path / "cache",
            upstreams={"pair": {"url": REFUSED_URL, "replicas": [servers["good"].url], "model": "stub"}},
        )  # fmt: skip
        async with composed(settings) as server:
            running = asyncio.create_task(server.listeners[0].run())
            await server.optimization.optimizer.start_optimization()
            address = f"http://127.0.0.1:{server.listeners[0].port}"
            async with aiohttp.ClientSession(address) as client:
                for _ in range(30):
                    async with client.post(CHAT, json=body("pair", stream=False)) as answer:
                        assert answer.status in (200, 502)
                found = await counted(client)
            server.listeners[0].stop()
            await running
    requests = sum(found["loadwise_requests_total"].values())
    retries = found["loadwise_retries_total"][("pair",)]
    assert retries > 0
    assert requests - retries == found["loadwise_http_requests_total"][(CHAT, "200")] + found[
        "loadwise_http_requests_total"
    ].get((CHAT, "502"), 0)
