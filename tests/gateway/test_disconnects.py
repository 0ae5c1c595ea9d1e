"""A client that leaves frees its engine's place, and says nothing about the engine."""

from __future__ import annotations

import asyncio
import json
import socket
import struct

import pytest

from loadwise.clock import SystemClock
from loadwise.testing.fakes import FakeTokenEngine, Turnstile


def request(stream: bool) -> bytes:
    body = json.dumps(
        {
            "model": "auto",
            "messages": [{"role": "user", "content": "hello"}],
            "stream": stream,
            "max_tokens": 900,
            "ignore_eos": True,
        }
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def connected(port: int) -> socket.socket:
    connection = socket.socket()
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    return connection


def leave(connection: socket.socket, how: str) -> None:
    if how == "RST":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.fixture
async def paced(rendered, on_socket):
    pace = Turnstile()
    tokens = FakeTokenEngine(pace=pace, clock=SystemClock())
    async with on_socket(await rendered(tokens)) as site:
        site.pace = pace
        yield site


def idle(site) -> bool:
    return site.tokens.reading().running_requests == 0 and bool(site.director.outcomes)


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_before_the_first_byte_frees_the_place(paced, when, how, stream):
    connection = await connected(paced.port)
    await asyncio.get_running_loop().sock_sendall(connection, request(stream))
    await when(lambda: paced.tokens.reading().running_requests == 1)
    leave(connection, how)
    await when(lambda: idle(paced))
    assert [outcome.ending for outcome in paced.director.outcomes] == ["abandoned"]
    assert paced.director.in_flight == 0


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_leaving_mid_stream_frees_the_place(paced, when, how):
    connection = await connected(paced.port)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, request(stream=True))
    paced.pace.allow(3)
    async with asyncio.timeout(20):
        assert (await loop.sock_recv(connection, 65536)).startswith(b"HTTP/1.1 200")
    leave(connection, how)
    await when(lambda: idle(paced))
    assert [outcome.ending for outcome in paced.director.outcomes] == ["abandoned"]


async def test_leaving_while_sending_the_body_dispatches_nothing(paced, when):
    connection = await connected(paced.port)
    await asyncio.get_running_loop().sock_sendall(connection, request(stream=False)[:-20])
    connection.close()
    probe = await connected(paced.port)
    probe.close()
    assert not paced.director.requests


async def test_the_connection_serves_on_after_an_answer(paced, when):
    loop = asyncio.get_running_loop()
    connection = await connected(paced.port)
    paced.pace.allow(5000)
    for _ in range(3):
        await loop.sock_sendall(connection, request(stream=False))
        received = b""
        async with asyncio.timeout(20):
            while b'"usage"' not in received:
                received += await loop.sock_recv(connection, 65536)
        assert received.startswith(b"HTTP/1.1 200")
    connection.close()
    assert [outcome.ending for outcome in paced.director.outcomes] == ["succeeded"] * 3
