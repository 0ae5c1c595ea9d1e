"""What happens around a request: bodies in pieces, slow readers, other protocols, odd names."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import msgspec
import pytest

from loadwise.decision.facts import RequestFacts, StrategyName
from loadwise.errors import RequestError
from loadwise.gateway.body import read_body
from loadwise.gateway.departure import ClientLeft, Departure
from loadwise.gateway.headers import of_dispatch
from loadwise.ports import Dispatch, ModelCard
from loadwise.settings import KeySettings, Settings

SCOPE = {"headers": []}
BODY = {"model": "auto", "prompt": "a", "stream": True}


def receiving(*messages: dict[str, Any]):
    """Receives the messages in turn, then nothing any more."""
    left = list(messages)

    async def receive() -> dict[str, Any]:
        if left:
            return left.pop(0)
        return await asyncio.Event().wait()

    return receive


def piece(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_in_pieces_is_put_together():
    receive = receiving(piece(b'{"a":', True), piece(b"", True), piece(b"1}", False))
    assert await read_body(SCOPE, receive, 100, 5.0) == b'{"a":1}'


async def test_pieces_count_against_the_limit():
    pieces = [piece(b"x" * 60, True), piece(b"x" * 60, False)]
    with pytest.raises(RequestError) as caught:
        await read_body(SCOPE, receiving(*pieces), 100, 5.0)
    assert caught.value.status == 413


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"400")]])
async def test_a_body_that_is_too_large_is_read_to_its_end(headers):
    read = []

    async def receive() -> dict[str, Any]:
        read.append(piece(b"x" * 100, len(read) < 3))
        return read[-1]

    with pytest.raises(RequestError) as caught:
        await read_body({"headers": headers}, receive, 100, 5.0)
    assert caught.value.status == 413
    assert len(read) == 4


@pytest.mark.parametrize(
    "headers",
    [[(b"content-length", b"401")], [(b"content-length", b"200"), (b"expect", b"100-continue")]],
    ids=["far too large", "not sent yet"],
)
async def test_a_body_that_is_better_not_sent_is_refused_unread(headers):
    with pytest.raises(RequestError) as caught:
        await read_body({"headers": headers}, receiving(), 100, 5.0)
    assert caught.value.status == 413


async def test_a_body_without_end_is_not_read_for_ever():
    async def receive() -> dict[str, Any]:
        return piece(b"x" * 100, True)

    with pytest.raises(RequestError) as caught:
        await read_body(SCOPE, receive, 100, 60.0)
    assert caught.value.status == 413


async def test_a_body_that_never_ends_is_given_up():
    with pytest.raises(RequestError) as caught:
        await read_body(SCOPE, receiving(piece(b"x", True)), 100, 0.001)
    assert caught.value.status == 408


async def test_leaving_in_the_middle_of_a_body_is_noticed():
    receive = receiving(piece(b"x", True), {"type": "http.disconnect"})
    with pytest.raises(ClientLeft):
        await read_body(SCOPE, receive, 100, 5.0)


async def test_leaving_ends_what_is_awaited_and_leaves_the_task_alive():
    with pytest.raises(ClientLeft):
        async with Departure(receiving(piece(b"", False), {"type": "http.disconnect"})):
            await asyncio.Event().wait()
    assert asyncio.current_task().cancelling() == 0


async def test_a_cancellation_from_elsewhere_stays_one():
    async def wait() -> None:
        async with Departure(receiving()):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_departure_is_watched_from_a_task():
    loop = asyncio.get_running_loop()
    failed: list[BaseException] = []

    def outside() -> None:
        try:
            Departure(receiving()).__aenter__().send(None)
        except RuntimeError as error:
            failed.append(error)

    loop.call_soon(outside)
    await asyncio.sleep(0)
    assert len(failed) == 1


async def test_an_engine_is_read_no_faster_than_its_client_reads(site_of, scripted, when):
    made: list[int] = []

    class Endless(scripted):
        async def _chunks(self):
            for number in range(10_000):
                made.append(number)
                yield b"data: x\n\n"

    site = site_of(fast=Endless())
    sent: list[dict[str, Any]] = []
    stalled = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if len(sent) == 4:
            stalled.set()
            await asyncio.Event().wait()

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "headers": [(b"host", b"localhost")],
    }
    receive = receiving(piece(msgspec.json.encode(BODY), False))
    task = asyncio.create_task(site.app(scope, receive, send))
    await stalled.wait()
    assert len(made) == 3
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [outcome.ending for outcome in site.director.outcomes] == ["abandoned"]


async def test_lifespan_is_answered(site_of):
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    receive = receiving({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    await site_of().app({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in sent] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


async def test_websockets_are_closed(site_of):
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await site_of().app({"type": "websocket"}, receiving(), send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_a_bug_after_the_first_byte_breaks_the_connection_instead_of_lying(site_of, scripted):
    site = site_of(fast=scripted(script=[b"data: 1\n\n"]))
    sent: list[str] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])
        if len(sent) == 3:
            raise OSError("the transport is broken")

    scope = {"type": "http", "method": "GET", "path": "/health", "headers": []}
    sent.append("before")
    with pytest.raises(OSError, match="transport"):
        await site.app(scope, receiving(), send)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/fast"])
async def test_models_are_listed_for_who_asks(site_of, path):
    key = KeySettings(id="team", sha256=hashlib.sha256(b"k").hexdigest(), require_tags={"eu"})
    site = site_of(Settings(keys=(key,)))
    asked = []
    site.director.models = lambda principal: asked.append(principal) or []
    await site.ask("GET", path, headers=[("authorization", "Bearer k")])
    assert [(principal.key_id, principal.tags.require) for principal in asked] == [("team", {"eu"})]


async def test_what_is_known_of_a_model_is_listed(site_of):
    site = site_of()
    site.director.models = lambda *_: [
        ModelCard(model_id="org/fast", kind="member", created_s=5, context_tokens=1024, quality=0.7)
    ]
    reply = await site.ask("GET", "/v1/models/org/fast")
    assert reply.json() == {
        "id": "org/fast",
        "object": "model",
        "created": 5,
        "owned_by": "loadwise",
        "kind": "member",
        "max_model_len": 1024,
        "quality": 0.7,
    }


@pytest.mark.parametrize(
    ("name", "shown"), [("fast", b"fast"), ("modèle\r\nx: 1", b"mod%C3%A8le%0D%0Ax: 1"), ("a b", b"a b")]
)
def test_names_never_break_a_header(name, shown):
    dispatch = Dispatch(
        request=RequestFacts(request_id="r"),
        member_id=name,
        replica_id=name,
        engine=None,
        strategy=StrategyName.QUALITY,
        reason="named",
        propensity=1.0,
    )
    assert dict(of_dispatch(dispatch))[b"x-loadwise-member"] == shown
