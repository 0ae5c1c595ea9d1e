"""What loadwise adds on an engine's own request path: CPU per request, and per streamed event.

    python benchmarks/inside.py [--requests 5000] [--json]

An application that only reads its request and answers is called with and without the middleware, with
bodies of up to 8 KiB; the difference of the thread's own time is what loadwise adds to the engine's event
loop. What its own thread does later is shown apart. The goal is 100 us per unstreamed request.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from loadwise.app.inside.members import optimization_inside
from loadwise.clock import SystemClock
from loadwise.decision.facts import Endpoint
from loadwise.engines.inside.description import EngineDescription
from loadwise.engines.inside.merging import Views
from loadwise.gateway.inside import Inside
from loadwise.optimizer.beside import Beside
from loadwise.optimizer.desk import Desk
from loadwise.optimizer.factory import Optimization
from loadwise.optimizer.plan import plan_of
from loadwise.settings import load_settings
from loadwise.testing import shapes

GOAL_US = 100.0
CHAT = "/v1/chat/completions"
SIZES = (512, 2048, 8192)
EVENTS = 200
App = Callable[[Any, Any, Any], Awaitable[None]]


def body_of(size: int, *, stream: bool) -> bytes:
    """A chat of several turns whose JSON has `size` bytes."""
    turns = [{"role": "user" if at % 2 == 0 else "assistant", "content": ""} for at in range(5)]
    asked = {"model": "small", "messages": turns, "temperature": 0.7, "max_tokens": 100, "stream": stream}
    room = max(0, size - len(json.dumps(asked)))
    for turn in turns:
        turn["content"] = "x" * (room // len(turns))
    return json.dumps(asked).encode()


def engine(answer: list[bytes], content_type: bytes) -> App:
    """An application that reads its request and sends the answer's pieces."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"content-type", content_type)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in answer:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


async def call(app: App, body: bytes) -> None:
    """One request, as a server makes it."""

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None: ...

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"accept", b"*/*")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "root_path": "", "headers": headers}
    await app(scope, receive, send)


async def cost_us(app: App, body: bytes, requests: int, after: Callable[[], None]) -> list[float]:
    """The thread's own microseconds of each request."""
    found = []
    gc.disable()
    for _ in range(requests):
        began = time.thread_time_ns()
        await call(app, body)
        found.append((time.thread_time_ns() - began) / 1000.0)
        after()
    gc.enable()
    return found


async def measure(requests: int) -> dict[str, Any]:
    """Every figure of this benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        clock = SystemClock()
        description = EngineDescription(
            engine="vllm", names=("small",), context_tokens=32_768, capacity_requests=64
        )
        views = Views(clock, replica_id="small-0", capacity_requests=64)
        ceilings = {
            "ceilings": {"max_tokens": 64},
            "experiment": {"block_share": 0.0, "conversation_share": 0.0},
        }
        settings = load_settings(state_dir=Path(folder), optimization=ceilings)
        made = optimization_inside(settings, description, views, clock, Path(folder))
        await made.optimizer.start_optimization()
        found = await _with(made, clock, requests)
        await made.optimizer.close()
        return found


async def _with(made: Optimization, clock: SystemClock, requests: int) -> dict[str, Any]:
    parts = made.optimizer.ensemble_manager.fleet.engines()
    desk = Desk(clock, next(iter(parts.values())))
    beside, later = Beside(made.optimizer), []

    def after() -> None:
        began = time.thread_time_ns()
        for note in desk.take_notes():
            beside.take("self", note)
        later.append((time.thread_time_ns() - began) / 1000.0)
        desk.plan = plan_of(made.optimizer, 1)

    def inside(app: App) -> Inside:
        return Inside(
            app, deciding=desk, clock=clock, names=lambda: {"small": "small"}, body_limit_bytes=2**20
        )

    after()
    whole = engine(
        [shapes.whole(Endpoint.CHAT, "1", "small", "word " * 64, "stop", shapes.usage(900, 64))],
        b"application/json",
    )
    rows = {}
    for size in SIZES:
        body = body_of(size, stream=False)
        bare = await cost_us(whole, body, requests, lambda: None)
        added = await cost_us(inside(whole), body, requests, after)
        rows[f"unstreamed, {size} bytes"] = _row(added, bare, 1)
    events = [shapes.chunk(Endpoint.CHAT, "1", "small", "word ", None)] * EVENTS
    streamed = engine(events, b"text/event-stream")
    body = body_of(2048, stream=True)
    bare = await cost_us(streamed, body, requests // 10, lambda: None)
    added = await cost_us(inside(streamed), body, requests // 10, after)
    single = rows["unstreamed, 2048 bytes"]["median_us"]
    each = _row(added, bare, 1)
    rows["per streamed event"] = {name: max(0.0, value - single) / EVENTS for name, value in each.items()}
    rows["later, in our thread"] = _row(later, [0.0], 1)
    return rows


def _row(values: list[float], bare: list[float], each: int) -> dict[str, float]:
    base = statistics.median(bare)
    ordered = sorted(values)
    p99 = ordered[int(0.99 * (len(ordered) - 1))]
    return {"median_us": (statistics.median(ordered) - base) / each, "p99_us": (p99 - base) / each}


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = asyncio.run(measure(options.requests))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'':<28}{'median us':>12}{'p99 us':>12}   (goal: {GOAL_US:g} us per unstreamed request)")
    for name, row in rows.items():
        print(f"{name:<28}{row['median_us']:>12.2f}{row['p99_us']:>12.2f}")


if __name__ == "__main__":
    main()
