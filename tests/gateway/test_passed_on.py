"""Endpoints that are passed on as they are: bytes, models, ceilings, endings, and what is learned."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from loadwise.clock import SystemClock
from loadwise.decision.facts import Ending, Endpoint
from loadwise.engines.openai_http import OpenAIEngine
from loadwise.gateway.routes import PASSED_ROUTES
from loadwise.testing import Behaviour, StubUpstream

RESPONSE_EVENTS = b"".join(
    b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event).encode())
    for event in (
        {"type": "response.created", "response": {"id": "r", "status": "in_progress"}},
        {"type": "response.output_text.delta", "delta": "Hel"},
        {"type": "response.output_text.delta", "delta": "lo"},
        {
            "type": "response.completed",
            "response": {"status": "completed", "usage": {"input_tokens": 3, "output_tokens": 2}},
        },
    )
)
MESSAGE_EVENTS = b"".join(
    b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event).encode())
    for event in (
        {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}},
        {"type": "message_stop"},
    )
)
EMBEDDED = {"object": "list", "data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 2}}
PATHS = [route.path for route in PASSED_ROUTES]
FORM = "multipart/form-data; boundary=line"


def form(model: str) -> bytes:
    return (
        b'--line\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n\x00\xff\r\n'
        b'--line\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
        + model.encode()
        + b"\r\n--line--\r\n"
    )


@pytest.fixture
async def behind(site_of):
    """A gateway in front of a stub: (site, stub, engine)."""
    stub = StubUpstream(Behaviour())
    engine = OpenAIEngine(await stub.start(), replica_id="fast", clock=SystemClock())
    await engine.start()
    yield site_of(fast=engine), stub, engine
    await engine.close()
    await stub.close()


def outcome(site: Any) -> Any:
    return site.director.outcomes[-1]


@pytest.mark.parametrize("path", PATHS)
async def test_a_request_arrives_as_it_was_but_for_the_models_name(behind, path: str) -> None:
    site, stub, _ = behind
    stub.behaviour.canned[path] = ("application/json", b'{"model": "what it says", "x":1}')
    is_form = path in {"/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits"}
    body = form("auto") if is_form else b'{"model": "auto", "input": [1, {"a": null}], "x": 1e400}'
    kind = FORM if is_form else "application/json"
    reply = await site.ask("POST", path, body, headers=[("content-type", kind)])
    assert (reply.status, reply.body) == (200, b'{"model": "what it says", "x":1}')
    assert reply.headers["x-loadwise-member"] == "fast"
    arrived = stub.received[-1]
    assert (arrived.path, arrived.headers["content-type"]) == (path, kind)
    expected = form("stub") if is_form else b'{"model":"stub","input":[1, {"a": null}],"x":1e400}'
    assert arrived.body == expected


@pytest.mark.parametrize(
    ("endpoint", "events", "tokens"),
    [(Endpoint.RESPONSES, RESPONSE_EVENTS, (3, 2)), (Endpoint.MESSAGES, MESSAGE_EVENTS, (5, 4))],
)
async def test_typed_streams_come_out_byte_for_byte_and_are_measured(behind, endpoint, events, tokens):
    site, stub, _ = behind
    stub.behaviour.canned[endpoint.value] = ("text/event-stream", events)
    reply = await site.ask("POST", endpoint.value, {"model": "auto", "stream": True})
    assert reply.body == events
    seen = outcome(site)
    assert (seen.prompt_tokens, seen.output_tokens, seen.finish_reason) == (*tokens, "stop")
    assert seen.ending is Ending.SUCCEEDED
    assert seen.time_to_first_token_s is not None
    assert seen.generated


@pytest.mark.parametrize(
    ("endpoint", "events"), [(Endpoint.RESPONSES, RESPONSE_EVENTS), (Endpoint.MESSAGES, MESSAGE_EVENTS)]
)
async def test_a_typed_stream_that_breaks_ends_with_an_error_event_of_its_own(behind, endpoint, events):
    site, stub, _ = behind
    stub.behaviour.canned[endpoint.value] = ("text/event-stream", events)
    stub.behaviour.dies_after = 2
    reply = await site.ask("POST", endpoint.value, {"model": "auto", "stream": True})
    *_, last = reply.body.strip().split(b"\n\n")
    name, data = last.split(b"\n")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
    assert b"[DONE]" not in reply.body
    assert outcome(site).ending is Ending.FAILED


async def test_a_forms_content_type_may_be_written_in_any_case(behind):
    site, stub, _ = behind
    path = "/v1/audio/transcriptions"
    stub.behaviour.canned[path] = ("application/json", b'{"text":"hi"}')
    kind = "Multipart/Form-Data; boundary=line"
    reply = await site.ask("POST", path, form("auto"), headers=[("content-type", kind)])
    assert reply.status == 200
    assert stub.received[-1].body == form("stub")


async def test_an_embeddings_time_says_nothing_of_a_members_speed(behind):
    site, stub, _ = behind
    stub.behaviour.canned["/v1/embeddings"] = ("application/json", json.dumps(EMBEDDED).encode())
    await site.ask("POST", "/v1/embeddings", {"model": "auto", "input": "a"})
    seen = outcome(site)
    assert not seen.generated
    assert (seen.prompt_tokens, seen.output_tokens) == (2, None)


@pytest.mark.parametrize("path", PATHS)
async def test_bodies_without_a_model_are_refused_by_name(behind, path: str) -> None:
    site, stub, _ = behind
    for body, kind in ((b"{}", "application/json"), (b"--line--\r\n", FORM), (b"[", "application/json")):
        reply = await site.ask("POST", path, body, headers=[("content-type", kind)])
        assert reply.status == 400, reply.body
        assert reply.error["code"] or reply.error["param"]
    assert not stub.received or stub.received[-1].method == "GET"


async def test_the_openai_client_embeds_and_responds(behind, on_socket):
    site, stub, _ = behind
    stub.behaviour.canned["/v1/embeddings"] = ("application/json", json.dumps(EMBEDDED).encode())
    stub.behaviour.canned["/v1/audio/transcriptions"] = ("application/json", b'{"text": "hello"}')
    async with on_socket(site) as live:
        client = openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
        vectors = await client.embeddings.create(model="auto", input="a", encoding_format="float")
        written = await client.audio.transcriptions.create(model="auto", file=("a.wav", b"RIFF\x00\xff"))
        await client.close()
    assert vectors.data[0].embedding == [0.1]
    assert written.text == "hello"
