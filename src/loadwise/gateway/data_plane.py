"""The handlers of the data plane: completions, what is passed on, models, health, metrics, version."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Protocol

from loadwise.decision.facts import Endpoint
from loadwise.decision.fault import ours
from loadwise.errors import EngineError, RequestError
from loadwise.gateway.asgi import Exchange
from loadwise.gateway.body import check_text, read_body
from loadwise.gateway.departure import Departure
from loadwise.gateway.fields import Fields, decode
from loadwise.gateway.headers import to_engine
from loadwise.gateway.passing import passed_call
from loadwise.gateway.reading import read_facts
from loadwise.gateway.relay import Relay
from loadwise.gateway.retries import RetryBudget
from loadwise.gateway.traced import TracedDirector, TracedRelay, Tracing
from loadwise.ports import Call, Clock, Director, ModelCard
from loadwise.settings import Settings


class Telemetry(Protocol):
    """Where `/metrics` comes from."""

    def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics and their content type, in the form that the Accept header asks for."""
        ...

    def answered(self, path: str, status: int | None) -> None:
        """Counts a request by its route's path and the status sent; None where the client left before."""
        ...


def status_of(error: Exception) -> int:
    """The status with which a request that met this error is answered."""
    if isinstance(error, RequestError):
        return error.status
    return 502 if isinstance(error, EngineError) else 500


class Readiness:
    """Whether new requests are welcome; set to draining once, when the server stops."""

    def __init__(self) -> None:
        self.draining = False


class DataPlane:
    """The handlers; each answers one exchange, or raises `RequestError`."""

    def __init__(
        self,
        settings: Settings,
        director: Director,
        telemetry: Telemetry,
        clock: Clock,
        readiness: Readiness,
        tracing: Tracing | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._director = director
        self._telemetry = telemetry
        self._readiness = readiness
        relay = Relay(
            director if tracing is None else TracedDirector(director, tracing), clock, RetryBudget()
        )
        self._relay = relay if tracing is None else TracedRelay(relay, tracing)
        self._version = version("loadwise")

    async def chat(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions."""
        await self._complete(Endpoint.CHAT, exchange)

    async def completion(self, exchange: Exchange) -> None:
        """POST /v1/completions."""
        await self._complete(Endpoint.COMPLETION, exchange)

    def passed(self, endpoint: Endpoint) -> Callable[[Exchange], Awaitable[None]]:
        """The handler of an endpoint whose requests are passed on as they are."""

        async def handle(exchange: Exchange) -> None:
            settings = self._settings
            body = await read_body(
                exchange.scope, exchange.receive, settings.body_limit_bytes, settings.timeouts.idle_s
            )
            call, fields = await passed_call(endpoint, exchange, body, self._clock.monotonic_s())
            async with Departure(exchange.receive):
                try:
                    facts = read_facts(endpoint, fields, exchange, None)
                except Exception as error:
                    self._unread(exchange, fields, error)
                    raise
                await self._relay.serve(exchange, facts, call, fields)

        return handle

    async def _complete(self, endpoint: Endpoint, exchange: Exchange) -> None:
        settings = self._settings
        scope, receive = exchange.scope, exchange.receive
        body = await read_body(scope, receive, settings.body_limit_bytes, settings.timeouts.idle_s)
        received_s = self._clock.monotonic_s()
        await check_text(body)
        fields = decode(endpoint, body)
        call = Call(
            endpoint=endpoint,
            body=body,
            request_id=exchange.request_id,
            stream=bool(fields.stream),
            headers=to_engine(scope),
            received_s=received_s,
        )
        async with Departure(receive):
            try:
                size = await self._director.measure(fields.model, call)
                facts = read_facts(endpoint, fields, exchange, size)
            except Exception as error:
                self._unread(exchange, fields, error)
                raise
            await self._relay.serve(exchange, facts, call, fields)

    def _unread(self, exchange: Exchange, fields: Fields, error: Exception) -> None:
        """A request that failed before it could be decided is counted as refused where that is our doing."""
        status = status_of(error)
        if ours(status):
            self._director.refused(exchange.request_id, fields.model, status)

    async def models(self, exchange: Exchange) -> None:
        """GET /v1/models: those that the key may ask."""
        cards = [_card(card) for card in self._director.models(exchange.principal)]
        await exchange.reply_json(200, {"object": "list", "data": cards})

    async def model(self, exchange: Exchange) -> None:
        """GET /v1/models/{model}; names may hold slashes."""
        name = exchange.scope["path"].removeprefix("/v1/models/")
        for card in self._director.models(exchange.principal):
            if card.model_id == name:
                return await exchange.reply_json(200, _card(card))
        raise RequestError(
            f"The model {name!r:.200} does not exist.", status=404, param="model", code="model_not_found"
        )

    async def health(self, exchange: Exchange) -> None:
        """GET /health: the process answers."""
        await exchange.reply_json(200, {"status": "ok"})

    async def ready(self, exchange: Exchange) -> None:
        """GET /health/readiness: 200 when requests are welcome, else 503 with the reason."""
        if self._readiness.draining:
            await exchange.reply_json(503, {"status": "draining"})
        elif not self._director.models():
            await exchange.reply_json(503, {"status": "no models"})
        else:
            await exchange.reply_json(200, {"status": "ready"})

    async def metrics(self, exchange: Exchange) -> None:
        """GET /metrics: the exposition format of Prometheus, or OpenMetrics where it is asked for."""
        body, content_type = self._telemetry.render(exchange.header(b"accept") or "")
        await exchange.reply(200, body, content_type.encode("ascii"))

    async def version(self, exchange: Exchange) -> None:
        """GET /version."""
        await exchange.reply_json(200, {"version": self._version})


def _card(card: ModelCard) -> dict[str, object]:
    shown: dict[str, object] = {
        "id": card.model_id,
        "object": "model",
        "created": card.created_s,
        "owned_by": "loadwise",
        "kind": card.kind,
    }
    # vLLM's name for the context's length; what is not known is left out.
    if card.context_tokens is not None:
        shown["max_model_len"] = card.context_tokens
    if card.quality is not None:
        shown["quality"] = card.quality
    return shown
