"""Traces through the real server: joined to the caller, handed on to the engine, exported, inert without."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel: pip install 'loadwise[otel]'")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from loadwise.app.server import composed
from loadwise.errors import MissingExtraError
from loadwise.settings import TracingSettings, load_settings
from loadwise.telemetry import attributes
from loadwise.telemetry.tracing import open_tracing
from loadwise.testing import StubUpstream

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
CHAT = "/v1/chat/completions"
PROMPT = "the-words-of-a-client"


class Collector:
    """An OTLP endpoint that keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def take(self, request: web.Request) -> web.Response:
        message = ExportTraceServiceRequest.FromString(await request.read())
        for resource in message.resource_spans:
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.Response(body=b"", content_type="application/x-protobuf")

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/v1/traces", self.take)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
        finally:
            await runner.cleanup()


def attributes_of(span: Any) -> dict[str, Any]:
    found = {}
    for item in span.attributes:
        kind = item.value.WhichOneof("value")
        value = getattr(item.value, kind)
        found[item.key] = [entry.string_value for entry in value.values] if kind == "array_value" else value
    return found


async def traced(folder: Path, requests: list[tuple[dict[str, Any], dict[str, str]]], **tracing: Any) -> Any:
    """The spans of those requests, and what the upstream got."""
    stub, collector = StubUpstream(), Collector()
    async with collector.listening() as endpoint:
        settings = load_settings(
            port=0, upstreams={"eu": {"url": await stub.start()}}, state_dir=folder / "state",
            cache_dir=folder / "cache", tracing={"endpoint": endpoint, **tracing},
        )  # fmt: skip
        async with composed(settings) as server:
            running = asyncio.create_task(server.listeners[0].run())
            await server.optimization.optimizer.start_optimization()
            address = f"http://127.0.0.1:{server.listeners[0].port}"
            async with aiohttp.ClientSession(address) as client:
                for body, headers in requests:
                    async with client.post(CHAT, json=body, headers=headers) as answer:
                        await answer.read()
            server.listeners[0].stop()
            await running
        await stub.close()
    return collector.spans, [request for request in stub.received if PROMPT.encode() in request.body]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4, **fields}


async def test_a_span_joins_the_callers_trace_and_the_engine_continues_it(tmp_path: Path) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    (span,), (received,) = await traced(tmp_path, [(chat(temperature=0.5), headers)])
    assert span.trace_id.hex() == TRACE
    assert span.parent_span_id.hex() == PARENT
    assert received.headers["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"
    assert span.name == "chat auto"
    said = attributes_of(span)
    assert said[attributes.OPERATION] == "chat"
    assert said[attributes.REQUEST_MODEL] == "auto"
    assert said[attributes.PARAMETERS["temperature"]] == 0.5
    assert said[attributes.PARAMETERS["max_tokens"]] == 4
    assert (said[attributes.MEMBER], said[attributes.ENDING]) == ("eu", "succeeded")
    assert said[attributes.STRATEGY] in {"quality", "balanced", "performance"}
    assert said[attributes.REASON]
    assert (said[attributes.INPUT_TOKENS], said[attributes.OUTPUT_TOKENS]) == (7, 4)
    assert said[attributes.FINISH_REASONS] == ["stop"]
    assert PROMPT not in str(span)


async def test_refused_requests_have_spans_too_and_name_their_error(tmp_path: Path) -> None:
    (span,), _ = await traced(tmp_path, [(chat(model="nobody"), {})])
    said = attributes_of(span)
    assert said[attributes.ERROR_TYPE] == "RequestError"
    assert not span.events


async def test_a_caller_that_does_not_sample_is_followed(tmp_path: Path) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    spans, (received,) = await traced(tmp_path, [(chat(), headers)])
    assert spans == []
    assert received.headers["traceparent"].split("-")[1] == TRACE
    assert received.headers["traceparent"].endswith("-00")


async def test_prompts_are_in_spans_only_when_the_operator_asks(tmp_path: Path) -> None:
    (span,), _ = await traced(tmp_path, [(chat(), {})], prompts=True)
    assert PROMPT in attributes_of(span)[attributes.INPUT_MESSAGES]


def test_names_of_the_conventions_are_theirs() -> None:
    conventions = pytest.importorskip("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")
    known = {value for name, value in vars(conventions).items() if name.startswith("GEN_AI_")}
    ours = {value for value in vars(attributes).values() if isinstance(value, str)}
    ours |= set(attributes.PARAMETERS.values())
    used = {value for value in ours if value.startswith("gen_ai.")}
    # Whether an operation's name is known is told by an enumeration of its own.
    operations = {item.value for item in conventions.GenAiOperationNameValues}
    assert used <= known
    assert {*attributes.OPERATIONS.values(), attributes.OTHER_OPERATION} <= operations


def test_without_configuration_nothing_of_opentelemetry_is_imported() -> None:
    code = (
        "import sys, loadwise.app.server\n"
        "from loadwise.telemetry.tracing import open_tracing\n"
        "assert open_tracing(None) is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "opentelemetry",
        "opentelemetry.sdk",
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    ):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"loadwise\[otel\]"):
        open_tracing(TracingSettings(endpoint="http://127.0.0.1:4318/v1/traces"))
