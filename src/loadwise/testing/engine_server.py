"""An engine's own server in miniature: what Aphrodite Engine and vLLM do with a plugin, without an engine."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, Protocol

from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from loadwise.decision.facts import Endpoint
from loadwise.testing import shapes

PROMPT_TOKENS = 5


class Plugin(Protocol):
    """What an engine calls of an endpoint plugin."""

    def attach_router(self, app: FastAPI) -> None:
        """While the application is built."""
        ...

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Once the engine runs."""
        ...


class _Authentication:
    """Outermost, as in the engines: without the key nothing behind it is reached."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] == "http" and not hmac.compare_digest(sent, self._expected):
            refusal = Response(shapes.error("No key.", kind="authentication_error"), 401)
            return await refusal(scope, receive, send)
        return await self._app(scope, receive, send)


class EngineServer:
    """Answers completions with `w0 w1 ...`; keeps the bodies that its handlers got."""

    def __init__(
        self, *, model: str = "stub", adapters: tuple[str, ...] = (), key: str | None = None, tokens: int = 8
    ) -> None:
        self.model = model
        self.adapters = adapters
        self.tokens = tokens
        self.bodies: list[dict[str, Any]] = []
        # Streams stop after their first token until this is set.
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.config = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=1024, served_model_name=model),
            scheduler_config=SimpleNamespace(max_num_seqs=8),
            parallel_config=SimpleNamespace(_api_process_count=1),
            compilation_config=SimpleNamespace(mode=None, compilation_time=0.0, backend=""),
        )
        # What its workers say that they compiled.
        self.compiled: list[dict[str, float]] = []
        self._key = key
        self.app = FastAPI()

    async def serve(self, plugin: Plugin, args: Any = None) -> FastAPI:
        """The application with the plugin attached and told that the engine runs."""
        for endpoint in Endpoint:
            self.app.add_api_route(endpoint.value, self._handler(endpoint), methods=["POST"])
        plugin.attach_router(self.app)
        if self._key is not None:
            self.app.add_middleware(_Authentication, key=self._key)
        given = args or SimpleNamespace(
            served_model_name=[self.model],
            host="127.0.0.1",
            port=1,
            lora_modules=[SimpleNamespace(name=name) for name in self.adapters],
        )
        client = SimpleNamespace(
            vllm_config=self.config, aphrodite_config=self.config, collective_rpc=self._ask_workers
        )
        await plugin.init_state(client, self.app.state, given)
        return self.app

    async def _ask_workers(self, _: str) -> list[dict[str, float]]:
        return self.compiled

    def _handler(self, endpoint: Endpoint) -> Any:
        async def answer(request: Request) -> Response:
            body = await request.json()
            self.bodies.append(body)
            if body.get("model") not in (self.model, *self.adapters):
                return Response(shapes.error("No such model.", kind="NotFoundError"), 404)
            count = min(self.tokens, body.get("max_tokens") or self.tokens)
            if body.get("stream"):
                return StreamingResponse(self._events(endpoint, body, count), media_type="text/event-stream")
            text = "".join(f"w{place} " for place in range(count))
            tokens = shapes.usage(PROMPT_TOKENS, count)
            whole = shapes.whole(endpoint, "1", self.model, text, "stop", tokens)
            return Response(whole, media_type="application/json")

        return answer

    async def _events(self, endpoint: Endpoint, body: dict[str, Any], count: int) -> AsyncIterator[bytes]:
        for place in range(count):
            reason = "stop" if place + 1 == count else None
            yield shapes.chunk(endpoint, "1", self.model, f"w{place} ", reason, first=place == 0)
            await self.goes_on.wait()
        if (body.get("stream_options") or {}).get("include_usage"):
            yield shapes.usage_chunk(endpoint, "1", self.model, shapes.usage(PROMPT_TOKENS, count))
        yield shapes.DONE
