"""A gateway over fake engines: called in this process, or over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadwise.clock import SystemClock
from loadwise.decision.facts import Capabilities, EngineReading
from loadwise.engines.rendering.engine import RenderedEngine
from loadwise.gateway.build import build_gateway
from loadwise.gateway.gateway import Gateway
from loadwise.gateway.server import Listener, Place
from loadwise.ports import Answer, Call
from loadwise.settings import Settings
from loadwise.testing.director_fakes import FakeControl, FakeDirector
from loadwise.testing.fakes import FakeTokenEngine
from loadwise.testing.folders import write_tokenizer

PATIENCE_S = 20.0


@dataclass
class Reply:
    """A whole answer of an application called in this process."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error = self.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


async def ask(
    app: Any,
    method: str,
    path: str,
    body: bytes | Any = b"",
    headers: Sequence[tuple[str, str]] = (),
    query: str = "",
) -> Reply:
    """The application's answer to one request; a value that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    messages = [{"type": "http.request", "body": content, "more_body": False}]
    sent: list[dict[str, Any]] = []
    never = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await never.wait()
        raise AssertionError("unreachable")

    async def send(message: dict[str, Any]) -> None:
        sent.append(dict(message))

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "scheme": "http",
        "server": ("127.0.0.1", 2240),
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"127.0.0.1:2240")] + [(n.lower().encode(), v.encode()) for n, v in headers],
    }
    if any(name.lower() == "host" for name, _ in headers):
        scope["headers"] = scope["headers"][1:]
    await app(scope, receive, send)
    start, *rest = sent
    assert not rest[-1].get("more_body"), "the answer was not completed"
    named = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    return Reply(start["status"], named, b"".join(message.get("body", b"") for message in rest))


class StaticTelemetry:
    """Telemetry with one metric."""

    def render(self, accept: str) -> tuple[bytes, str]:
        return b"# TYPE up gauge\nup 1\n", "text/plain; version=0.0.4; charset=utf-8"

    def answered(self, path: str, status: int | None) -> None: ...


@dataclass
class ScriptedEngine:
    """An engine that keeps each call and answers from a script: chunks to yield, exceptions to raise."""

    script: list[Any] = field(default_factory=lambda: [b'{"ok":true}'])
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=lambda: [("content-type", "application/json")])
    refusal: Exception | None = None
    calls: list[Call] = field(default_factory=list)
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(features_known=False))
    closed: int = 0

    async def answer(self, call: Call) -> Answer:
        self.calls.append(call)
        if self.refusal is not None:
            raise self.refusal
        return Answer(status=self.status, headers=self.headers, chunks=self._chunks())

    async def _chunks(self) -> AsyncIterator[bytes]:
        try:
            for item in self.script:
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, asyncio.Event):
                    await item.wait()
                else:
                    yield item
        finally:
            self.closed += 1

    async def count_tokens(self, call: Call) -> int | None:
        return None

    async def observe(self) -> EngineReading:
        return EngineReading(replica_id="scripted", read_s=0.0)

    async def start(self) -> None: ...

    async def close(self) -> None: ...


@dataclass
class Site:
    """A gateway and what lies behind it."""

    app: Gateway
    director: FakeDirector
    control: FakeControl
    port: int = 0
    tokens: FakeTokenEngine | None = None
    listener: Listener | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def ask(self, method: str, path: str, body: Any = b"", **more: Any) -> Reply:
        return await ask(self.app, method, path, body, **more)


def make_site(settings: Settings | None = None, **engines: Any) -> Site:
    """A gateway over the engines, called in this process."""
    clock = SystemClock()
    director = FakeDirector(engines or {"fast": ScriptedEngine()}, clock)
    control = FakeControl(clock)
    app = build_gateway(settings or Settings(), director, control, StaticTelemetry(), clock)
    return Site(app, director, control)


@asynccontextmanager
async def listening(site: Site, drain_s: float = 5.0) -> AsyncIterator[Site]:
    """The site answers on a real socket."""
    listener = Listener(site.app, Place("127.0.0.1", 0), drain_s)
    site.port, site.listener = listener.port, listener
    task = asyncio.create_task(listener.run())
    try:
        yield site
    finally:
        listener.stop()
        async with asyncio.timeout(PATIENCE_S):
            await task


async def until(condition: Callable[[], bool]) -> None:
    """Waits until the condition holds, turn by turn of the event loop."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "bytes")


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedEngine]:
    return ScriptedEngine


@pytest.fixture(scope="session")
def site_of() -> Callable[..., Site]:
    return make_site


@pytest.fixture(scope="session")
def on_socket() -> Callable[..., Any]:
    return listening


@pytest.fixture(scope="session")
def when() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    return until


@pytest.fixture
async def rendered(tokenizer_folder: Path) -> AsyncIterator[Callable[..., Awaitable[Site]]]:
    """Makes a site over a rendered fake token engine; its engines are closed at the end."""
    engines: list[RenderedEngine] = []

    async def make(tokens: FakeTokenEngine | None = None, settings: Settings | None = None) -> Site:
        tokens = tokens or FakeTokenEngine(clock=SystemClock())
        engine = RenderedEngine(tokens, tokenizer_folder, "fast", "fast", SystemClock())
        await engine.start()
        engines.append(engine)
        site = make_site(settings, fast=engine)
        site.tokens = tokens
        return site

    yield make
    for engine in engines:
        await engine.close()
