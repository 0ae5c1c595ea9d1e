"""A canary key and prompt go through every path; no log, trace, metric, report, page or file has them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from loadwise.app.logs import configure_logs
from loadwise.app.server import composed
from loadwise.settings import load_settings
from loadwise.testing import StubUpstream

DATA_KEY = "canary-data-key-5f2c"
ADMIN_KEY = "canary-admin-key-91ab"
UPSTREAM_KEY = "canary-upstream-key-77de"
WRONG_KEY = "canary-wrong-key-0c3d"
PROMPT = "canary-prompt-e61f"
CANARIES = (DATA_KEY, ADMIN_KEY, UPSTREAM_KEY, WRONG_KEY, PROMPT)
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
VIEWS = ("status", "metrics", "ensemble", "dashboard", "report", "report?export_file=true")


@pytest.fixture
def logs(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """The server's own log lines at debug level; call it for what was written so far."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    configure_logs("debug")
    # The formatter that writes to standard error, and whatever else would be written.
    yield lambda: "".join(capsys.readouterr())
    root.handlers[:], root.level = before, level


@asynccontextmanager
async def collector(kept: list[bytes]) -> AsyncIterator[str]:
    """An OTLP endpoint."""

    async def take(request: web.Request) -> web.Response:
        kept.append(await request.read())
        return web.Response(body=b"")

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    finally:
        await runner.cleanup()


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": PROMPT}], **more}


async def every_path(client: aiohttp.ClientSession, stub: StubUpstream) -> None:
    """Answers, errors, malformed requests, refused keys, a broken stream and a client that leaves."""
    good = {"authorization": f"Bearer {DATA_KEY}"}

    async def post(path: str, headers: dict[str, str] = good, **content: Any) -> int:
        async with client.post(path, headers=headers, **content) as answer:
            await answer.read()
            return answer.status

    assert await post(CHAT, json=chat()) == 200
    assert await post(CHAT, json=chat(stream=True)) == 200
    assert await post(TEXT, json={"model": "auto", "prompt": PROMPT}) == 200
    assert await post(CHAT, data=b'{"model": "auto", "messages": [{"content": "' + PROMPT.encode()) == 400
    assert await post(CHAT, json=chat(temperature=PROMPT)) == 400
    assert await post(CHAT, json={"model": "auto", "messages": PROMPT}) == 400
    assert await post(CHAT, {"authorization": f"Bearer {WRONG_KEY}"}, json=chat()) == 401
    assert await post("/v1/optimization/stop", {"x-loadwise-admin-key": WRONG_KEY}) == 401
    for status in (400, 429, 500):
        stub.behaviour.status = status
        assert await post(CHAT, json=chat()) == status
    stub.behaviour.status = 200
    stub.behaviour.dies_after = 1
    assert await post(CHAT, json=chat(stream=True)) == 200
    stub.behaviour.dies_after = None
    await leave(client, stub, good)


async def leave(client: aiohttp.ClientSession, stub: StubUpstream, headers: dict[str, str]) -> None:
    stub.behaviour.hold, before = asyncio.Event(), stub.active
    asked = asyncio.create_task(client.post(CHAT, headers=headers, json=chat(stream=True)))
    async with asyncio.timeout(20):
        while stub.active == before:
            await asyncio.sleep(0.001)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        while stub.active != before:
            await asyncio.sleep(0.001)
    stub.behaviour.hold = None


async def views(client: aiohttp.ClientSession) -> dict[str, str]:
    """Every page that an operator may read."""
    admin = {"x-loadwise-admin-key": ADMIN_KEY, "authorization": f"Bearer {DATA_KEY}"}
    pages = {}
    for path in ("/metrics", "/docs", "/openapi.json", *(f"/v1/optimization/{view}" for view in VIEWS)):
        async with client.get(path, headers=admin) as answer:
            assert answer.status == 200, path
            pages[path] = await answer.text()
    return pages


async def test_canaries_are_nowhere_but_where_they_were_sent(
    tmp_path: Path, logs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel: pip install 'loadwise[otel]'")
    monkeypatch.setenv("CANARY_UPSTREAM_KEY", UPSTREAM_KEY)
    stub, spans = StubUpstream(), []
    async with collector(spans) as endpoint:
        settings = load_settings(
            port=0, api_key=DATA_KEY, admin_key=ADMIN_KEY, log_level="debug", state_dir=tmp_path / "state",
            cache_dir=tmp_path / "cache", report_dir=tmp_path / "reports", tracing={"endpoint": endpoint},
            upstreams={"eu": {"url": await stub.start(), "api_key_env": "CANARY_UPSTREAM_KEY"}},
        )  # fmt: skip
        async with composed(settings) as server:
            running = asyncio.create_task(server.listeners[0].run())
            await server.optimization.optimizer.start_optimization()
            address = f"http://127.0.0.1:{server.listeners[0].port}"
            async with aiohttp.ClientSession(address) as client:
                await every_path(client, stub)
                await server.optimization.optimizer.cycle.tune()
                pages = await views(client)
            server.listeners[0].stop()
            await running
        received = list(stub.received)
        await stub.close()

    # They did travel: the engine got the prompt and its own key.
    assert any(PROMPT.encode() in request.body for request in received)
    assert any(UPSTREAM_KEY in str(request.headers) for request in received)
    written = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(written) > 2
    lines = logs()
    assert "stream_broke" in lines or "client_left" in lines
    places = {"log": lines, "traces": repr(b"".join(spans)), "settings": repr(settings), **pages}
    assert spans
    for canary in CANARIES:
        assert [place for place, text in places.items() if canary in text] == []
        assert [path for path, content in written.items() if canary.encode() in content] == []
