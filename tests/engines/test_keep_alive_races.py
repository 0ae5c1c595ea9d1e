"""An upstream that closes kept connections while requests are on their way costs no client an error."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from loadwise.clock import SystemClock
from loadwise.engines.http_client import HttpClient
from loadwise.engines.openai_http import OpenAIEngine
from loadwise.testing.engine_contract import make_call, read

REQUESTS = 20_000
AT_ONCE = 32
BODY = b'{"choices":[{"text":"a","finish_reason":"stop"}]}'
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)
EVENTS = b'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENTS), EVENTS)
)


class Racing(asyncio.Protocol):
    """Answers the first request of a connection; the next one finds it closed in the moment it is written.

    Every other connection ends with a reset instead of a goodbye. Of each twentieth answer the goodbye comes
    at once, as when the client was idle for too long.
    """

    def __init__(self, done: Counter[str]) -> None:
        self._done = done
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._done["connections"] += 1
        self._resets = self._done["connections"] % 2 == 0

    def data_received(self, data: bytes) -> None:
        if self._answered:
            self._close()
            return
        self._answered = True
        self._done["answered"] += 1
        self._transport.write(STREAM if b'"stream":true' in data else WHOLE)
        if self._done["answered"] % 20 == 0:
            self._transport.close()

    def _close(self) -> None:
        self._done["raced"] += 1
        if self._resets:
            self._transport.abort()
        else:
            self._transport.close()


@asynccontextmanager
async def racing() -> AsyncIterator[tuple[str, Counter[str]]]:
    done: Counter[str] = Counter()
    server = await asyncio.get_running_loop().create_server(lambda: Racing(done), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", done
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.slow
async def test_twenty_thousand_requests_on_connections_that_close_meet_no_error() -> None:
    async with racing() as (url, done):
        client = HttpClient(url, connect_s=30.0)
        seen: Counter[tuple[int, bytes]] = Counter()

        async def ask(number: int) -> None:
            for _ in range(number):
                response = await client.request("POST", "/v1/completions", {}, b"{}")
                seen[response.status, await response.piece()] += 1

        await asyncio.gather(*(ask(REQUESTS // AT_ONCE) for _ in range(AT_ONCE)))
        await client.close()
    assert seen == {(200, BODY): REQUESTS}
    assert done["answered"] == REQUESTS
    # The race was run by nearly every kept connection.
    assert done["raced"] > REQUESTS * 2 / 5


@pytest.mark.parametrize("stream", [False, True])
async def test_an_upstream_behind_the_engine_is_asked_again_unseen(stream: bool) -> None:
    async with racing() as (url, done):
        engine = OpenAIEngine(url, replica_id="far-0", clock=SystemClock(), model="m")
        await engine.start()
        for _ in range(200):
            answer = await engine.answer(make_call(stream=stream))
            assert answer.status == 200
            assert await read(answer) == (EVENTS if stream else BODY)
            assert not answer.progress.failed
        await engine.close()
    assert done["raced"] >= 50
