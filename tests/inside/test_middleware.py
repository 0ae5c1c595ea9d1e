"""The middleware on an engine's own request path."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from loadwise.decision.facts import Ending
from loadwise.gateway.body import edited
from loadwise.gateway.inside import Inside
from loadwise.testing.engine_server import EngineServer

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
LIMIT_BYTES = 4096


class Attached:
    """An endpoint plugin that attaches nothing but the middleware."""

    def __init__(self, site: Any, names: dict[str, str]) -> None:
        self._site = site
        self._names = names

    def attach_router(self, app: FastAPI) -> None:
        app.add_middleware(
            Inside,
            deciding=self._site.desk,
            clock=self._site.clock,
            names=lambda: self._names,
            body_limit_bytes=LIMIT_BYTES,
        )

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None: ...


@asynccontextmanager
async def serving(site: Any, server: EngineServer, **names: str) -> AsyncIterator[httpx.AsyncClient]:
    app = await server.serve(Attached(site, names or {server.model: server.model}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as client:
        yield client


def request(**changes: Any) -> dict[str, Any]:
    return {"model": "stub", "prompt": "hi", "max_tokens": 6, **changes}


async def test_what_the_operator_holds_down_arrives_held_down_and_is_said(site_of) -> None:
    site, server = await site_of(ceilings={"max_tokens": 3}), EngineServer()
    async with serving(site, server) as client:
        answer = await client.post(COMPLETION, json=request(max_tokens=100))
    assert server.bodies == [request(max_tokens=3)]
    assert answer.json()["usage"]["completion_tokens"] == 3
    assert answer.headers["x-loadwise-tuned"] == "max_tokens=3"
    assert answer.headers["x-loadwise-member"] == "stub"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(extra=st.dictionaries(st.text(min_size=1, max_size=6).map("x_{}".format), JSON, max_size=4))
def test_unknown_fields_keep_their_bytes(extra: dict[str, Any]) -> None:
    body = json.dumps(request(**extra)).encode()
    changed = edited(body, {"max_tokens": 3, "model": "real"}, frozenset({"max_tokens", "model"}))
    assert json.loads(changed) == request(**extra) | {"max_tokens": 3, "model": "real"}


@pytest.mark.parametrize("usage", [True, False])
async def test_streamed_bytes_are_the_engines_own(site_of, usage) -> None:
    body = request(stream=True, **({"stream_options": {"include_usage": True}} if usage else {}))
    bare = EngineServer()
    async with serving(await site_of(), bare) as client:
        site = await site_of()
        async with serving(site, EngineServer()) as watched:
            expected = (await client.post(COMPLETION, json=body)).content
            assert (await watched.post(COMPLETION, json=body)).content == expected
    (ended,) = site.ended()
    outcome = ended.outcome()
    assert outcome.ending is Ending.SUCCEEDED
    assert outcome.output_tokens == 6
    assert outcome.prompt_tokens == (5 if usage else None)
    assert outcome.finish_reason == "stop"
    assert outcome.time_to_first_token_s is not None


async def test_long_streams_keep_no_more_than_their_ends(site_of) -> None:
    site, server = await site_of(), EngineServer(tokens=500)
    async with serving(site, server) as client:
        await client.post(
            CHAT, json={"model": "stub", "messages": [{"role": "user", "content": "a"}], "stream": True}
        )
    (ended,) = site.ended()
    assert ended.outcome().output_tokens == 500


async def test_a_request_without_the_engines_key_is_never_read(site_of) -> None:
    site, server = await site_of(), EngineServer(key="secret")
    app = await server.serve(Attached(site, {"stub": "stub"}))
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": COMPLETION, "headers": [], "query_string": b""}
    await app({**scope, "http_version": "1.1", "scheme": "http", "server": ("a", 1)}, receive, send)
    assert sent[0]["status"] == 401
    assert not site.desk.notes


async def test_auto_is_answered_under_a_name_that_the_engine_knows(site_of) -> None:
    site, server = await site_of(), EngineServer()
    async with serving(site, server) as client:
        assert (await client.post(COMPLETION, json=request(model="auto"))).status_code == 200
    assert server.bodies == [request()]


async def test_the_engine_itself_refuses_what_it_does_not_serve(site_of) -> None:
    site, server = await site_of(), EngineServer()
    async with serving(site, server) as client:
        answer = await client.post(COMPLETION, json=request(model="other"))
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "NotFoundError"
    assert "x-loadwise-member" not in answer.headers
    assert not site.desk.notes


@pytest.mark.parametrize(
    "body", [b"", b"[1]", b"{", b'{"model": 5}', b'{"model":"stub","prompt":"a","n":-1}']
)
async def test_what_makes_no_sense_reaches_the_engine_as_it_is(site_of, body) -> None:
    site = await site_of()
    got: list[bytes] = []

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        got.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    app = Inside(
        engine, deciding=site.desk, clock=site.clock, names=lambda: {"stub": "stub"}, body_limit_bytes=99
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as client:
        assert (await client.post(COMPLETION, content=body)).status_code == 400
    assert got == [body]
    assert site.desk.errors == 0


async def test_a_body_above_the_limit_passes_unread(site_of) -> None:
    site, server = await site_of(ceilings={"max_tokens": 3}), EngineServer()
    long = request(prompt="a" * (LIMIT_BYTES + 1))
    async with serving(site, server) as client:
        await client.post(COMPLETION, json=long)
    assert server.bodies == [long]
    assert not site.desk.notes


async def test_a_failing_optimizer_costs_no_request_and_is_off_after_three_errors(
    site_of, monkeypatch
) -> None:
    site, server = await site_of(), EngineServer()

    def broken(_: Any) -> Any:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(site.desk, "dispatch", broken)
    async with serving(site, server) as client:
        answers = [await client.post(COMPLETION, json=request()) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert server.bodies == [request()] * 5
    assert site.desk.errors == 3
    assert "a bug of ours" in site.desk.off


async def test_a_plan_that_nobody_renews_is_no_longer_followed(site_of) -> None:
    site, server = await site_of(ceilings={"max_tokens": 3}), EngineServer()
    async with serving(site, server) as client:
        site.clock.advance(3.5)
        await client.post(COMPLETION, json=request())
        site.publish()
        await client.post(COMPLETION, json=request())
    assert [body["max_tokens"] for body in server.bodies] == [6, 3]


async def test_a_client_that_leaves_says_nothing_about_the_engine(site_of) -> None:
    site, server = await site_of(), EngineServer()
    server.goes_on.clear()
    app = await server.serve(Attached(site, {"stub": "stub"}))
    begun = asyncio.Event()
    messages: list[Any] = [{"type": "http.request", "body": json.dumps(request(stream=True)).encode()}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body"):
            begun.set()

    scope = {"type": "http", "method": "POST", "path": COMPLETION, "headers": [], "query_string": b""}
    await app({**scope, "http_version": "1.1", "scheme": "http", "server": ("a", 1)}, receive, send)
    (ended,) = site.ended()
    assert ended.outcome().ending is Ending.ABANDONED


async def test_an_engine_that_breaks_is_a_failure_and_its_error_stays(site_of) -> None:
    site = await site_of()

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise ValueError("the engine's own")

    app = Inside(
        engine, deciding=site.desk, clock=site.clock, names=lambda: {"stub": "stub"}, body_limit_bytes=999
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as client:
        with pytest.raises(ValueError, match="the engine's own"):
            await client.post(COMPLETION, json=request())
    (ended,) = site.ended()
    assert ended.outcome().ending is Ending.FAILED


async def test_every_request_ends_once(site_of) -> None:
    site, server = await site_of(), EngineServer()
    async with serving(site, server) as client:
        await asyncio.gather(*(client.post(COMPLETION, json=request()) for _ in range(20)))
    assert sorted(note.number for note in site.ended()) == sorted(note.number for note in site.began())
    assert len(site.ended()) == 20


async def test_stopped_optimisation_touches_nothing(site_of) -> None:
    site, server = (
        await site_of(
            tune_sampling=True,
            ranges={"temperature": {"low": 0, "high": 1}, "top_k": {"low": 1, "high": 100}},
        ),
        EngineServer(),
    )
    async with serving(site, server) as client:
        await client.post(COMPLETION, json=request())
        await site.made.optimizer.stop_optimization()
        site.publish()
        answer = await client.post(COMPLETION, json=request())
    assert "temperature" in server.bodies[0]
    assert server.bodies[1] == request()
    assert answer.headers["x-loadwise-reason"] == "stopped"
