"""What the gateway promises in figures, counted on requests that arrive at a server over sockets."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest

from loadwise.clock import SystemClock
from loadwise.decision.facts import Endpoint
from loadwise.engines.openai_http import OpenAIEngine
from loadwise.engines.relay import UpstreamStream
from loadwise.errors import EngineError
from loadwise.ports import Progress
from loadwise.testing import Behaviour, FakeClock, StubUpstream

BODIES = 10_000
ALPHABET = 'ab"\\/\n\té\u2028東京\U0001f600\x7f'


def text(dice: random.Random) -> str:
    return "".join(dice.choices(ALPHABET, k=dice.randrange(12)))


def value(dice: random.Random, depth: int = 3) -> Any:
    """Any JSON value, integers far beyond 64 bits and numbers no float holds exactly among them."""
    kind = dice.randrange(8 if depth else 6)
    if kind == 6:
        return [value(dice, depth - 1) for _ in range(dice.randrange(4))]
    if kind == 7:
        return {text(dice): value(dice, depth - 1) for _ in range(dice.randrange(4))}
    return (
        None,
        dice.random() < 0.5,
        dice.randrange(-(10**40), 10**40),
        dice.randrange(-9, 9) / 7,
        text(dice),
        2**63 + dice.randrange(9),
    )[kind]


def tool(dice: random.Random) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {text(dice): value(dice) for _ in range(3)}}
    return {"type": "function", "function": {"name": "f", "parameters": parameters, text(dice): value(dice)}}


def body(dice: random.Random) -> bytes:
    fields: dict[str, Any] = {
        "model": "auto",
        "messages": [{"role": "user", "content": text(dice)} for _ in range(dice.randrange(1, 4))],
        "stream": dice.random() < 0.3,
    }
    for name, make in (
        ("tools", lambda: [tool(dice) for _ in range(dice.randrange(1, 3))]),
        ("seed", lambda: dice.randrange(-(2**63), 2**63)),
        ("temperature", lambda: dice.randrange(2000) / 1000),
        ("stop", lambda: [text(dice) or "x"]),
        ("user", lambda: text(dice)),
        ("stream_options", lambda: {"x": value(dice)}),
    ):
        if dice.random() < 0.3:
            fields[name] = make()
    fields |= {"x_" + text(dice): value(dice) for _ in range(dice.randrange(4))}
    names = list(fields)
    dice.shuffle(names)
    shuffled = {name: fields[name] for name in names}
    return json.dumps(shuffled, ensure_ascii=dice.random() < 0.5, indent=dice.choice([None, 1])).encode()


def meaning(raw: bytes) -> Any:
    """What a body says: numbers to the last digit, names in any order."""
    return json.loads(raw, parse_float=Decimal)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_ten_thousand_bodies_arrive_meaning_what_they_meant(site_of: Any) -> None:
    stub = StubUpstream(Behaviour(tokens=1))
    engine = OpenAIEngine(await stub.start(), replica_id="fast", clock=SystemClock())
    await engine.start()
    site = site_of(fast=engine)
    dice = random.Random(7)
    try:
        for number in range(BODIES):
            sent = body(dice)
            site.director.changes = {"max_tokens": 5} if number % 2 else {}
            reply = await site.ask("POST", "/v1/chat/completions", sent)
            assert reply.status == 200, reply.body
            expected = meaning(sent) | {"model": "stub"}
            if number % 2:
                expected["max_tokens"] = 5
            if expected["stream"]:
                expected["stream_options"] = expected.get("stream_options", {}) | {"include_usage": True}
                assert b'"usage"' not in reply.body
            assert meaning(stub.received[-1].body) == expected
    finally:
        await engine.close()
        await stub.close()


# --- streams ---------------------------------------------------------------------------------------

EVENTS = [
    'data: {"id":"1","model":"an upstream\'s own","choices":[{"delta":{"content":"é東"}}]}\n\n'.encode(),
    b": a comment\n\n",
    b'data: {"model":"m","choices":[{"delta":{},"finish_reason":"stop"}]}\r\n\r\n',
]
USAGE = b'data: {"model":"m","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


class Pieces:
    """A response whose body comes in the given pieces."""

    waits = False

    def __init__(self, *pieces: bytes) -> None:
        self._left = [piece for piece in pieces if piece]

    async def piece(self, until_s: float | None = None) -> bytes:
        return self._left.pop(0) if self._left else b""

    def close(self) -> None: ...


async def passed_on(*pieces: bytes, hide_usage: bool) -> bytes:
    progress = Progress()
    stream = UpstreamStream(
        Pieces(*pieces),  # type: ignore[arg-type]
        progress,
        Endpoint.CHAT,
        FakeClock(),
        hide_usage=hide_usage,
        idle_s=60.0,
        deadline_s=asyncio.get_running_loop().time() + 600.0,
        on_end=lambda: None,
    )
    await stream.begin(60.0)
    out = b"".join([chunk async for chunk in stream])
    assert (progress.prompt_tokens, progress.output_tokens, progress.failed) == (1, 2, False)
    return out


@pytest.mark.parametrize("hide_usage", [False, True])
async def test_a_stream_that_is_split_at_any_byte_or_at_every_byte_comes_out_the_same(hide_usage) -> None:
    raw = b"".join([*EVENTS, USAGE, DONE])
    expected = b"".join([*EVENTS, DONE]) if hide_usage else raw
    for at in range(len(raw) + 1):
        assert await passed_on(raw[:at], raw[at:], hide_usage=hide_usage) == expected
    every = [raw[at : at + 1] for at in range(len(raw))]
    assert await passed_on(*every, hide_usage=hide_usage) == expected


# --- retries ---------------------------------------------------------------------------------------


async def test_with_one_engine_down_attempts_stay_below_a_fifth_more(site_of: Any, scripted: Any) -> None:
    down, up = scripted(refusal=EngineError("down")), scripted()
    site = site_of(down=down, up=up)
    answers: Counter[int] = Counter()
    for _ in range(1000):
        reply = await site.ask("POST", "/v1/completions", {"model": "auto", "prompt": "a"})
        answers[reply.status] += 1
    attempts = len(down.calls) + len(up.calls)
    # Beyond the reserve of ten for quiet servers.
    assert 1200 <= attempts <= 1210
    assert answers == {200: attempts - 1000, 502: 2000 - attempts}
