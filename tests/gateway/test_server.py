"""Listeners: ports, and stopping without breaking an answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from contextlib import closing

import httpx
import openai
import pytest

from loadwise.clock import SystemClock
from loadwise.errors import ConfigurationError
from loadwise.gateway import heads
from loadwise.gateway.build import build_listeners, taken
from loadwise.gateway.heads import HEAD_LIMIT_BYTES
from loadwise.gateway.server import Listener, Place, run, serve
from loadwise.settings import Settings
from loadwise.testing.fakes import FakeTokenEngine, Turnstile

MESSAGES = [{"role": "user", "content": "hello"}]


def test_a_port_in_use_is_said_in_one_line():
    with closing(Place("127.0.0.1", 0)) as taken:
        taken.listen()
        with pytest.raises(ConfigurationError, match=f"Port {taken.port} on 127.0.0.1 is in use") as caught:
            Place("127.0.0.1", taken.port)
    assert caught.value.field == "port"
    assert "\n" not in str(caught.value)


def test_of_two_that_start_together_the_slower_is_told_the_same():
    with closing(Place("127.0.0.1", 0)) as first, closing(Place("127.0.0.1", first.port)) as second:
        first.listen()
        with pytest.raises(ConfigurationError, match=f"Port {first.port} on 127.0.0.1 is in use"):
            second.listen()


async def test_a_place_that_nobody_serves_yet_refuses_connections():
    with closing(Place("127.0.0.1", 0)) as place:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", place.port)
        place.listen()
        _, writer = await asyncio.open_connection("127.0.0.1", place.port)
        writer.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_refused(host):
    with pytest.raises(ConfigurationError, match="Cannot listen on"):
        Place(host, 0)


async def test_a_stop_lets_streams_finish(rendered):
    pace = Turnstile()
    site = await rendered(FakeTokenEngine(pace=pace, answer_length=8, clock=SystemClock()))
    listener = Listener(site.app, Place("127.0.0.1", 0))
    task = asyncio.create_task(listener.run())
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{listener.port}/v1", api_key="x", max_retries=0
    ) as client:
        pace.allow(2)
        stream = await client.chat.completions.create(
            model="auto", messages=MESSAGES, stream=True, temperature=0, max_tokens=8
        )
        listener.stop()
        assert (await site.ask("GET", "/health/readiness")).json() == {"status": "draining"}
        pace.allow(100)
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    async with asyncio.timeout(20):
        await task
    assert [outcome.ending for outcome in site.director.outcomes] == ["succeeded"]


async def test_a_stop_cuts_what_outlasts_the_drain_time(rendered, when):
    pace = Turnstile()
    site = await rendered(FakeTokenEngine(pace=pace, clock=SystemClock()))
    listener = Listener(site.app, Place("127.0.0.1", 0), drain_s=1)
    task = asyncio.create_task(listener.run())
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.port}") as client:
        asked = asyncio.create_task(
            client.post("/v1/completions", json={"model": "auto", "prompt": "abc"}, timeout=20)
        )
        await when(lambda: site.director.in_flight == 1)
        listener.stop()
        await asyncio.gather(asked, return_exceptions=True)
    async with asyncio.timeout(20):
        await task
    await when(lambda: site.director.in_flight == 0)
    assert [outcome.ending for outcome in site.director.outcomes] == ["abandoned"]


async def test_two_listeners_stop_together_at_a_signal(site_of):
    data, admin = (Listener(site_of().app, Place("127.0.0.1", 0)) for _ in range(2))
    assert data.port != admin.port

    async def ready() -> None:
        async with httpx.AsyncClient() as client:
            for listener in (data, admin):
                answer = await client.get(f"http://127.0.0.1:{listener.port}/health")
                assert answer.status_code == 200
        os.kill(os.getpid(), signal.SIGTERM)

    async with asyncio.timeout(20):
        await serve([data, admin], ready)
    assert data.app.readiness.draining
    assert admin.app.readiness.draining


def test_a_coroutine_runs_to_its_end():
    seen: list[str] = []

    async def main() -> None:
        seen.append(type(asyncio.get_running_loop()).__module__)

    run(main())
    assert len(seen) == 1


@pytest.mark.parametrize("admin_port", [None, 0])
async def test_a_server_has_one_listener_or_two_that_drain_together(site_of, admin_port):
    site = site_of()
    settings = Settings(port=0, admin_port=admin_port)
    with taken(settings) as places:
        listeners = build_listeners(places, settings, site.director, site.control, None, SystemClock())
    assert len(listeners) == (1 if admin_port is None else 2)
    assert len({listener.app.readiness for listener in listeners}) == 1


def test_a_taken_admin_port_frees_the_other_and_names_its_flag():
    with closing(Place("127.0.0.1", 0)) as used, closing(Place("127.0.0.1", 0)) as free:
        used.listen()
        free.close()
        settings = Settings(port=free.port, admin_port=used.port)
        with pytest.raises(ConfigurationError, match="--admin-port") as caught, taken(settings):
            pass
    assert caught.value.field == "admin_port"
    Place("127.0.0.1", free.port).close()


async def test_headers_without_end_are_given_up(site_of, on_socket):
    async with on_socket(site_of()) as site, httpx.AsyncClient() as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        answer = b""
        async with asyncio.timeout(20):
            # A reset may overtake the answer, because the client is still sending.
            with contextlib.suppress(ConnectionError):
                writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-long: ")
                writer.write(b"a" * (HEAD_LIMIT_BYTES + 2**16))
                await writer.drain()
                answer = await reader.read()
        writer.close()
        assert answer[:13] in (b"", b"HTTP/1.1 431 ")
        assert (await client.get(site.url + "/health")).status_code == 200


async def test_long_but_bounded_headers_pass(site_of, on_socket):
    async with on_socket(site_of()) as site, httpx.AsyncClient() as client:
        answer = await client.get(site.url + "/health", headers={"x-long": "a" * 2**16})
        assert answer.status_code == 200


async def connected(site):
    return await asyncio.open_connection("127.0.0.1", int(site.url.rpartition(":")[2]))


async def test_a_head_that_never_ends_is_refused(site_of, on_socket, monkeypatch):
    monkeypatch.setattr(heads, "HEAD_S", 0.05)
    async with on_socket(site_of()) as site, asyncio.timeout(60):
        reader, writer = await connected(site)
        writer.write(b"GET /health HTTP/1.1\r\nx-slow: ")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"headers_timeout"' in answer
        writer.close()


async def test_one_byte_after_the_other_buys_no_time(site_of, on_socket, monkeypatch):
    monkeypatch.setattr(heads, "HEAD_S", 0.05)
    async with on_socket(site_of()) as site, asyncio.timeout(60):
        reader, writer = await connected(site)
        writer.write(b"GET /health HTTP/1.1\r\nx-slow: ")
        # A reset may overtake the answer, because the client is still sending.
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError):
            assert (await reader.read())[:13] in (b"", b"HTTP/1.1 408 ")
        writer.close()


async def test_a_connection_that_asks_nothing_is_closed(site_of, on_socket, monkeypatch):
    monkeypatch.setattr(heads, "HEAD_S", 0.05)
    async with on_socket(site_of()) as site, asyncio.timeout(60):
        reader, writer = await connected(site)
        assert await reader.read() == b""
        writer.close()


async def test_a_slow_body_behind_a_whole_head_is_no_slow_head(site_of, on_socket, monkeypatch, scripted):
    monkeypatch.setattr(heads, "HEAD_S", 0.05)
    body = b'{"model": "auto", "messages": [{"role": "user", "content": "hello"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with on_socket(site_of(stub=scripted())) as site, asyncio.timeout(60):
        reader, writer = await connected(site)
        writer.write(head + body[:5])
        silent, other = await connected(site)
        # Closed for its silence, it shows that as much time has passed for the one before it.
        assert await silent.read() == b""
        writer.write(body[5:])
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        other.close()


async def test_a_head_that_is_too_large_puts_nothing_into_the_answer_before_it(rendered, on_socket):
    pace = Turnstile()
    site = await rendered(FakeTokenEngine(pace=pace, answer_length=4, clock=SystemClock()))
    body = b'{"model": "auto", "stream": true, "messages": [{"role": "user", "content": "hello"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with on_socket(site) as served, asyncio.timeout(60):
        reader, writer = await connected(served)
        pace.allow(1)
        writer.write(head + body)
        await reader.readuntil(b"data: ")
        writer.write(b"GET /health HTTP/1.1\r\nx-long: " + b"a" * (HEAD_LIMIT_BYTES + 2**16))
        rest = b""
        # A reset may overtake the end, because the client is still sending.
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(2**16):
                rest += part
        assert b"HTTP/1.1 431 " not in rest
        writer.close()


async def test_a_slow_head_waits_for_the_answer_before_it(rendered, on_socket, monkeypatch):
    monkeypatch.setattr(heads, "HEAD_S", 0.05)
    pace = Turnstile()
    site = await rendered(FakeTokenEngine(pace=pace, answer_length=4, clock=SystemClock()))
    body = b'{"model": "auto", "stream": true, "messages": [{"role": "user", "content": "hello"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with on_socket(site) as served, asyncio.timeout(60):
        reader, writer = await connected(served)
        pace.allow(1)
        writer.write(head + body + b"GET /health HTT")
        await reader.readuntil(b"data: ")
        silent, other = await connected(served)
        assert await silent.read() == b""
        pace.allow(100)
        rest = await reader.read()
        assert b"[DONE]" in rest
        assert b"HTTP/1.1 408 " in rest
        writer.close()
        other.close()


async def test_what_is_no_http_is_refused_in_openais_shape(site_of, on_socket):
    async with on_socket(site_of()) as site, asyncio.timeout(60):
        for wrong in (b"zip\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\ncontent-length: -1\r\n\r\n"):
            reader, writer = await connected(site)
            writer.write(wrong)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 ")
            assert json.loads(body)["error"]["code"] == "invalid_http"
            writer.close()


async def test_a_body_that_turns_out_to_be_no_http_is_refused(site_of, on_socket):
    async with on_socket(site_of()) as site, asyncio.timeout(60):
        reader, writer = await connected(site)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        writer.write(b"zip\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"invalid_http"' in answer
        writer.close()
    assert not site.director.requests


async def test_a_client_that_sends_everything_before_it_looks_is_told_that_it_was_too_much(
    site_of, on_socket
):
    limit = 2**20
    async with on_socket(site_of(Settings(body_limit_bytes=limit))) as site, asyncio.timeout(60):
        reader, writer = await connected(site)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (4 * limit)
        )
        for _ in range(4):
            writer.write(b"x" * limit)
            await writer.drain()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"body_too_large"' in answer
        writer.close()


async def test_the_rest_of_a_body_that_nobody_reads_holds_no_connection(site_of, on_socket, monkeypatch):
    monkeypatch.setattr(heads, "HEAD_S", 0.05)
    async with on_socket(site_of()) as site, asyncio.timeout(60):
        reader, writer = await connected(site)
        writer.write(b"POST /nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n1")
        assert (await reader.readline()).startswith(b"HTTP/1.1 404 ")
        # One more byte takes the timer away with which idle connections end.
        writer.write(b"2")
        await reader.read()
        writer.close()


async def test_a_body_that_comes_whole_after_its_answer_keeps_the_connection(site_of, on_socket):
    async with on_socket(site_of()) as site, asyncio.timeout(60):
        reader, writer = await connected(site)
        writer.write(b"POST /nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n1")
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
        writer.write(b"2GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()


@pytest.mark.parametrize("path", ["/health", "/health/readiness", "/v1/models", "/metrics", "/dashboard"])
async def test_head_is_answered_like_get_without_a_body(site_of, on_socket, path):
    async with on_socket(site_of()) as site, httpx.AsyncClient(base_url=site.url) as client:
        got = await client.get(path)
        # The second finds the connection clean: no body followed the first.
        heads = [await client.head(path) for _ in range(2)]
    for head in heads:
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == got.headers["content-length"]
