"""A span per request by OpenTelemetry, joined to the caller's trace and handed on to the engine.

The extra `otel` is imported only when tracing is configured. Spans hold figures and decisions; a prompt's
text only where `prompts` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import msgspec

from loadwise.decision.facts import Ending, Endpoint, Outcome, RequestFacts
from loadwise.errors import MissingExtraError
from loadwise.ports import Call, Dispatch
from loadwise.settings import TracingSettings
from loadwise.telemetry import attributes as names

_PROMPT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def open_tracing(settings: TracingSettings | None) -> Tracing | None:
    """Tracing as configured, None where it is not; `MissingExtraError` without the extra `otel`."""
    if settings is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError:
        raise MissingExtraError("Tracing needs OpenTelemetry: pip install 'loadwise[otel]'.") from None
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
        resource=Resource.create(
            {"service.name": settings.service_name, "service.version": version("loadwise")}
        ),
    )
    # Exports from a thread of its own, with a bounded queue: a collector that is down delays no request.
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=str(settings.endpoint))))
    return Tracing(provider, prompts=settings.prompts)


class Tracing:
    """Spans from a tracer provider of OpenTelemetry's SDK."""

    def __init__(self, provider: Any, *, prompts: bool = False) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("loadwise", version("loadwise"))
        self._propagator = TraceContextTextMapPropagator()
        self._prompts = prompts

    @contextmanager
    def request(self, facts: RequestFacts, call: Call) -> Iterator[Call]:
        """A span around one request; the call that it gives hands the span on to the engine."""
        operation = names.OPERATIONS.get(facts.endpoint, names.OTHER_OPERATION)
        with self._tracer.start_as_current_span(
            f"{operation} {facts.model}",
            context=self._propagator.extract(call.headers),
            kind=self._trace.SpanKind.SERVER,
            attributes=self._asked(operation, facts, call),
            # Errors may repeat what a client sent: their type is told, not their text.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            headers = dict(call.headers)
            self._propagator.inject(headers)
            try:
                yield replace(call, headers=headers)
            except BaseException as error:
                span.set_attribute(names.ERROR_TYPE, type(error).__name__)
                raise

    def _asked(self, operation: str, facts: RequestFacts, call: Call) -> dict[str, Any]:
        asked: dict[str, Any] = {
            names.OPERATION: operation,
            names.PROVIDER: "loadwise",
            names.REQUEST_MODEL: facts.model,
            names.REQUEST_ID: facts.request_id,
        }
        if facts.n != 1:
            asked[names.CHOICES] = facts.n
        asked |= {names.PARAMETERS[n]: v for n, v in facts.explicit.items() if n in names.PARAMETERS}
        if self._prompts and (prompt := _prompt(facts.endpoint, call.body)) is not None:
            asked[names.INPUT_MESSAGES] = prompt
        return asked

    def decided(self, dispatch: Dispatch, *, again: bool) -> None:
        """The current span says where the request goes and why."""
        span = self._trace.get_current_span()
        if not span.is_recording():
            return
        if again:
            span.add_event(names.ATTEMPT, {names.REPLICA: dispatch.replica_id})
        said = {
            names.MEMBER: dispatch.member_id,
            names.REPLICA: dispatch.replica_id,
            names.STRATEGY: dispatch.strategy.value,
            names.REASON: dispatch.reason,
            names.PROPENSITY: dispatch.propensity,
            names.CONFIG_VERSION: dispatch.config_version,
            names.CONTROL: dispatch.control,
            names.CHANGES: [f"{name}={value}" for name, value in dispatch.changes.items()],
        }
        if dispatch.load_score is not None:
            said[names.LOAD_SCORE] = dispatch.load_score
        span.set_attributes(said)

    def ended(self, outcome: Outcome) -> None:
        """The current span says how the attempt went."""
        span = self._trace.get_current_span()
        if not span.is_recording():
            return
        known = {
            names.ENDING: outcome.ending.value,
            names.RESPONSE_MODEL: outcome.member_id,
            names.INPUT_TOKENS: outcome.prompt_tokens,
            names.OUTPUT_TOKENS: outcome.output_tokens,
            names.FIRST_TOKEN: outcome.time_to_first_token_s,
            names.HTTP_STATUS: outcome.status,
            names.FINISH_REASONS: None if outcome.finish_reason is None else [outcome.finish_reason],
        }
        span.set_attributes({name: value for name, value in known.items() if value is not None})
        if outcome.ending is Ending.FAILED:
            span.set_attribute(names.ERROR_TYPE, str(outcome.status or "engine_failed"))
            span.set_status(self._trace.StatusCode.ERROR)
        elif outcome.ending is Ending.SUCCEEDED:
            span.set_status(self._trace.StatusCode.OK)

    def close(self) -> None:
        """Every ended span was exported, or given up after the exporter's time limit."""
        self._provider.shutdown()


def _prompt(endpoint: Endpoint, body: bytes) -> str | None:
    """The request's messages, or its prompt, as they were sent."""
    if endpoint not in (Endpoint.CHAT, Endpoint.COMPLETION):
        return None
    field = "messages" if endpoint is Endpoint.CHAT else "prompt"
    sent = _PROMPT.decode(body).get(field)
    return None if sent is None else bytes(sent).decode("utf-8", "replace")
