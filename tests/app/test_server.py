"""The composed server over real sockets: every layer joined, an upstream behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from loadwise.app.members import Members
from loadwise.app.server import Server, addresses, composed
from loadwise.clock import SystemClock
from loadwise.errors import ConfigurationError
from loadwise.gateway.server import Place
from loadwise.optimizer.fleet import MemberParts
from loadwise.settings import load_settings
from loadwise.testing import StubUpstream

BODY = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


@pytest.fixture
async def stub() -> AsyncIterator[StubUpstream]:
    server = StubUpstream()
    await server.start()
    yield server
    await server.close()


@asynccontextmanager
async def serving(tmp_path: Path, **settings: object) -> AsyncIterator[tuple[Server, str]]:
    """A composed server listening on a free port, and its address."""
    loaded = load_settings(port=0, state_dir=tmp_path / "state", cache_dir=tmp_path / "cache", **settings)
    async with composed(loaded) as server:
        tasks = [asyncio.create_task(listener.run()) for listener in server.listeners]
        address = f"http://127.0.0.1:{server.listeners[0].port}"
        await server.optimization.optimizer.start_optimization()
        try:
            yield server, address
        finally:
            for listener in server.listeners:
                listener.stop()
            await asyncio.gather(*tasks)


async def test_one_request_passes_through_every_layer_and_is_learned_from(
    stub: StubUpstream, tmp_path: Path
) -> None:
    async with (
        serving(tmp_path, upstreams={"eu": {"url": stub.url}}) as (_, address),
        aiohttp.ClientSession() as client,
    ):
        async with client.post(address + "/v1/chat/completions", json=BODY) as answer:
            assert answer.status == 200
            assert answer.headers["x-loadwise-member"] == "eu"
            assert answer.headers["x-loadwise-config"] == "1"
            assert (await answer.json())["choices"][0]["finish_reason"] == "stop"
        async with client.get(address + "/v1/optimization/ensemble") as answer:
            (model,) = (await answer.json())["models"]
        assert (model["model_id"], model["outcomes"], model["error_rate"]) == ("eu", 1, 0.0)
        assert model["engine"] == "openai_http"
        async with client.get(address + "/metrics") as answer:
            assert 'loadwise_requests_total{ending="succeeded"' in await answer.text()


async def test_the_optimizer_stopped_leaves_requests_untouched(stub: StubUpstream, tmp_path: Path) -> None:
    async with (
        serving(tmp_path, upstreams={"eu": {"url": stub.url}}) as (server, address),
        aiohttp.ClientSession() as client,
    ):
        await server.optimization.optimizer.stop_optimization()
        async with client.post(address + "/v1/chat/completions", json=BODY) as answer:
            assert answer.status == 200
            assert answer.headers["x-loadwise-reason"] == "stopped"
            assert answer.headers["x-loadwise-tuned"] == "none"


async def test_a_member_is_admitted_from_the_catalogue_and_answers_by_name(
    stub: StubUpstream, tmp_path: Path
) -> None:
    stub.behaviour.models = ({"id": "stub"}, {"id": "second"})
    async with (
        serving(tmp_path, upstreams={"eu": {"url": stub.url}}) as (_, address),
        aiohttp.ClientSession() as client,
    ):
        add = address + "/v1/optimization/ensemble/add_model"
        async with client.post(add, params={"model_id": "second", "initial_weight": "0.9"}) as answer:
            assert answer.status == 200, await answer.text()
        async with client.post(address + "/v1/chat/completions", json={**BODY, "model": "second"}) as answer:
            assert answer.headers["x-loadwise-member"] == "second"
        async with client.post(add, params={"model_id": "unheard-of"}) as answer:
            assert answer.status == 404


async def test_an_admin_port_moves_the_control_plane(stub: StubUpstream, tmp_path: Path) -> None:
    async with (
        serving(tmp_path, upstreams={"eu": {"url": stub.url}}, admin_port=0) as (server, address),
        aiohttp.ClientSession() as client,
    ):
        admin = addresses(server)["admin_url"]
        assert addresses(server)["url"] == address
        assert admin not in (address, "http://127.0.0.1:0")
        async with client.get(address + "/v1/optimization/status") as answer:
            assert answer.status == 404
        async with client.get(admin + "/v1/optimization/status") as answer:
            assert answer.status == 200
        async with client.post(admin + "/v1/chat/completions", json=BODY) as answer:
            assert answer.status == 404


async def test_a_port_in_use_is_said_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Members] = []

    async def open_all(members: Members) -> list[MemberParts]:
        opened.append(members)
        return []

    monkeypatch.setattr(Members, "open_all", open_all)
    with closing(Place("127.0.0.1", 0)) as place:
        place.listen()
        settings = load_settings(port=place.port, state_dir=tmp_path / "state")
        with pytest.raises(ConfigurationError, match="is in use"):
            async with composed(settings):
                pass
    assert not opened
    assert not (tmp_path / "state").exists()


async def test_a_configuration_survives_a_restart(stub: StubUpstream, tmp_path: Path) -> None:
    upstreams = {"eu": {"url": stub.url}}
    async with (
        serving(tmp_path, upstreams=upstreams) as (_, address),
        aiohttp.ClientSession() as client,
        client.post(address + "/v1/optimization/configure", json={"ensemble_strategy": "adaptive"}) as answer,
    ):
        assert answer.status == 200
    async with (
        serving(tmp_path, upstreams=upstreams) as (_, address),
        aiohttp.ClientSession() as client,
        client.get(address + "/v1/optimization/ensemble") as answer,
    ):
        assert (await answer.json())["strategy"] == "adaptive"


@pytest.mark.parametrize("dry", ["", "?dry_run=true"])
async def test_a_default_member_that_does_not_exist_is_refused(
    stub: StubUpstream, tmp_path: Path, dry: str
) -> None:
    async with (
        serving(tmp_path, upstreams={"eu": {"url": stub.url}}) as (server, address),
        aiohttp.ClientSession() as client,
        client.post(f"{address}/v1/optimization/configure{dry}", json={"default_member": "nope"}) as answer,
    ):
        assert answer.status == 400
        error = (await answer.json())["error"]
        assert error["param"] == "default_member"
        assert "eu" in error["message"]
        assert server.optimization.optimizer.config.default_member is None


async def test_an_alert_of_the_server_reaches_the_webhook_of_its_settings(
    stub: StubUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", "Bearer of-the-operator")
    heard: asyncio.Queue[tuple[str | None, dict[str, object]]] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        await heard.put((request.headers.get("authorization"), await request.json()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/hook", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hook = {"url": f"http://127.0.0.1:{runner.addresses[0][1]}/hook", "authorization_env": "HOOK"}
    async with serving(tmp_path, upstreams={"eu": {"url": stub.url}}, alerts={"webhooks": [hook]}) as (
        server,
        address,
    ):
        recorder = server.optimization.optimizer.recorder
        for number in range(100):
            recorder.objective_counts.note("auto", number % 2 == 0, SystemClock().monotonic_s())
        # The watch looks once a second by itself.
        authorization, body = await asyncio.wait_for(heard.get(), 30)
        assert authorization == "Bearer of-the-operator"
        assert (body["name"], body["severity"], body["subject"]) == ("objectives_spent", "ticket", "auto")
        async with aiohttp.ClientSession() as client, client.get(address + "/metrics") as answer:
            assert (
                'loadwise_alert_active{alert="objectives_spent",severity="ticket"} 1.0' in await answer.text()
            )
    await runner.cleanup()
