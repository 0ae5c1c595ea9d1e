"""The endpoint plugin in an engine's server in miniature, as an engine attaches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from loadwise.app.inside import endpoint
from loadwise.engines.inside import awake, compiled
from loadwise.gateway.routes import CONTROL_ROUTES
from loadwise.testing.engine_server import EngineServer

KEY = {"authorization": "Bearer secret"}
ADMIN = {**KEY, "x-loadwise-admin-key": "admin"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOADWISE_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("LOADWISE_ADMIN_KEY", "admin")
    for share in ("BLOCK_SHARE", "CONVERSATION_SHARE"):
        monkeypatch.setenv(f"LOADWISE_OPTIMIZATION__EXPERIMENT__{share}", "0")


@asynccontextmanager
async def attached(server: EngineServer, engine: str = "vllm") -> AsyncIterator[httpx.AsyncClient]:
    app: FastAPI = await server.serve(getattr(endpoint, engine)())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as client,
    ):
        yield client


async def ready(client: httpx.AsyncClient) -> Any:
    """The status, once our thread answers."""
    async with asyncio.timeout(20):
        while True:
            answer = await client.get("/v1/optimization/status", headers=KEY)
            if answer.status_code == 200:
                return answer.json()
            assert answer.json()["error"]["code"] == "starting"
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("engine", ["vllm", "aphrodite"])
async def test_the_engines_server_has_every_route(engine: str) -> None:
    server = EngineServer(key="secret")
    async with attached(server, engine) as client:
        status = await ready(client)
        # Events go on for ever; the page's other view is among the rest.
        shown = [route for route in CONTROL_ROUTES if route.method == "GET" and route.name != "events"]
        for route in shown:
            assert (await client.get(route.path, headers=KEY)).status_code == 200, route.path
    assert status["inside"]["engine"] == engine
    assert status["inside"]["names"] == ["stub"]
    assert status["engines"]["stub-0"]["capacity_requests"] == 8


async def test_what_the_engines_workers_compiled_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_installed", {"vllm"})
    server = EngineServer(key="secret")
    server.compiled = [{"torch_seconds": 12.0, "torch_loaded": 2.0, "torch_compiled": 0.0}]
    async with attached(server) as client:
        status = await ready(client)
    assert status["compilation_stats"]["stub"] == {
        "managed_by": "vllm", "mode": None, "backend": None,
        "compile_seconds": 12.0, "graphs_loaded": 2, "graphs_compiled": 0, "cache_hit": True,
    }  # fmt: skip


async def test_the_engines_key_opens_views_and_the_admin_key_changes() -> None:
    async with attached(EngineServer(key="secret")) as client:
        await ready(client)
        body = {"ceilings": {"max_tokens": 2}}
        path = "/v1/optimization/configure"
        assert (await client.get("/v1/optimization/status")).status_code == 401
        assert (await client.post(path, json=body)).status_code == 401
        assert (await client.post(path, json=body, headers=KEY)).status_code == 401
        assert (await client.post(path, json=body, headers=ADMIN)).status_code == 200
        answer = await client.post(
            "/v1/completions", json={"model": "stub", "prompt": "a", "max_tokens": 6}, headers=KEY
        )
    assert answer.json()["usage"]["completion_tokens"] == 2


async def test_what_the_engine_records_is_what_the_status_shows() -> None:
    class Scheduler:
        num_running_reqs, num_waiting_reqs, kv_cache_usage = 4, 2, 0.5

    async with attached(EngineServer(key="secret")) as client:
        await ready(client)
        awake.tell(0, Scheduler(), None)
        async with asyncio.timeout(20):
            while (reading := (await ready(client))["engines"]["stub-0"])["running_requests"] is None:
                await asyncio.sleep(0.02)
    assert (reading["running_requests"], reading["waiting_requests"]) == (4, 2)
    assert reading["kv_cache_usage_fraction"] == 0.5


async def test_wrong_settings_leave_the_engine_serving(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("LOADWISE_QUEUE_LIMIT", "many")
    async with attached(EngineServer(key="secret")) as client:
        answer = await client.post("/v1/completions", json={"model": "stub", "prompt": "a"}, headers=KEY)
        assert answer.status_code == 200
        assert (await client.get("/v1/optimization/status", headers=KEY)).status_code == 404
    assert "loadwise_not_attached" in caplog.text
    assert "queue_limit" in caplog.text


async def test_a_server_without_an_engine_is_left_alone() -> None:
    plugin = endpoint.vllm()
    app = FastAPI()
    plugin.attach_router(app)
    await plugin.init_state(None, app.state, None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as client:
        assert (await client.get("/v1/optimization/status")).status_code == 503


async def test_bypassed_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADWISE_BYPASS", "1")
    monkeypatch.setenv("LOADWISE_OPTIMIZATION__CEILINGS", '{"max_tokens": 2}')
    server = EngineServer(key="secret")
    async with attached(server) as client:
        assert (await ready(client))["system_status"] == "bypassed"
        sent = {"model": "stub", "prompt": "a", "temperature": 1}
        answer = await client.post("/v1/completions", json=sent, headers=KEY)
    assert server.bodies == [sent]
    assert answer.headers["x-loadwise-reason"] == "stopped"
