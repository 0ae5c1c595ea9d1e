"""A stub OpenAI-compatible server: raw asyncio, canned answers, so cheap that a gateway is what is measured.

Run it alone with `python -m loadwise.testing --port 8000`.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from loadwise.decision.facts import COMPLETIONS, Endpoint
from loadwise.testing import shapes
from loadwise.testing.profiles import Profile

MODEL = "stub"
PROMPT_TOKENS = 7
PROFILED = frozenset({"/openapi.json", "/tokenize", *(endpoint.value for endpoint in COMPLETIONS)})
_REASONS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 429: b"Too Many Requests", 500: b"Error"}


@dataclass(slots=True)
class Received:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Behaviour:
    """How the stub answers; tests change it between requests."""

    tokens: int = 8
    # Seconds before the first token and between tokens.
    first_delay_s: float = 0.0
    token_delay_s: float = 0.0
    status: int = 200
    # Status and body that every request for an answer gets.
    refusal: tuple[int, bytes] | None = None
    # Cut the connection after so many chunks of a stream.
    dies_after: int | None = None
    # Say nothing at all until this is set.
    hold: asyncio.Event | None = None
    metrics: str = ""
    extra_headers: tuple[tuple[str, str], ...] = ()
    # Path -> (content type, body) of endpoints that it answers word for word; event streams in chunks.
    canned: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    # Answers, unless streamed, as a server of these abilities does.
    profile: Profile | None = None
    models: tuple[dict[str, Any], ...] = field(
        default_factory=lambda: ({"id": MODEL, "object": "model", "max_model_len": 1024},)
    )


class StubUpstream:
    """Serves `/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/metrics`, `/health`, and `canned`."""

    def __init__(self, behaviour: Behaviour | None = None, *, keep: int = 100) -> None:
        self.behaviour = behaviour or Behaviour()
        # The newest requests, for tests that check what arrived.
        self.received: deque[Received] = deque(maxlen=keep)
        self.connections = 0
        # Its base address, once it listens.
        self.url = ""
        # Requests being answered, and those whose client left before the end.
        self.active = 0
        self.aborted = 0
        self._server: asyncio.Server | None = None
        self._idle = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listens, and returns the base address, for example http://127.0.0.1:8000."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), host, port)
        bound = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{host}:{bound}"
        return self.url

    async def close(self) -> None:
        """Stops listening and ends what is being answered."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def quiet(self) -> None:
        """Returns once nothing is being answered any more."""
        async with self._idle:
            await self._idle.wait_for(lambda: self.active == 0)

    async def answer(self, request: Received, connection: _Connection) -> None:
        """Writes the answer to one request."""
        self.active += 1
        try:
            await self._answer(request, connection)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted += 1
            raise
        finally:
            self.active -= 1
            async with self._idle:
                self._idle.notify_all()

    async def _answer(self, request: Received, connection: _Connection) -> None:
        behaviour = self.behaviour
        if behaviour.hold is not None:
            await behaviour.hold.wait()
        if behaviour.profile is not None and request.path in PROFILED:
            body = json.loads(request.body or b"null")
            connection.reply(*behaviour.profile.answer(request.method, request.path, body))
            return
        if request.path.startswith("/v1/") and request.method == "POST":
            await self._generate(request, connection)
        elif request.path == "/v1/models":
            connection.reply(200, json.dumps({"object": "list", "data": behaviour.models}).encode())
        elif request.path == "/metrics":
            connection.reply(200 if behaviour.metrics else 404, behaviour.metrics.encode(), "text/plain")
        else:
            connection.reply(200 if request.path == "/health" else 404, b"{}")

    async def _generate(self, request: Received, connection: _Connection) -> None:
        behaviour = self.behaviour
        if behaviour.refusal is not None:
            connection.reply(*behaviour.refusal)
            return
        if behaviour.status != 200:
            kind = "rate_limit_error" if behaviour.status == 429 else "server_error"
            extra = (("retry-after", "3"),) if behaviour.status == 429 else ()
            connection.reply(behaviour.status, shapes.error("As the test asked.", kind=kind), extra=extra)
            return
        if behaviour.first_delay_s:
            await asyncio.sleep(behaviour.first_delay_s)
        if request.path in behaviour.canned:
            self._recite(*behaviour.canned[request.path], connection)
            return
        body = json.loads(request.body)
        endpoint = Endpoint.CHAT if request.path.endswith("chat/completions") else Endpoint.COMPLETION
        if body.get("stream"):
            await self._stream(endpoint, body, connection)
        else:
            count = self._count(body)
            text = "".join(f"w{place} " for place in range(count))
            tokens = shapes.usage(PROMPT_TOKENS, count)
            connection.reply(200, shapes.whole(endpoint, "stub-1", MODEL, text, "stop", tokens))

    def _recite(self, kind: str, body: bytes, connection: _Connection) -> None:
        if kind != "text/event-stream":
            connection.reply(200, body, kind)
            return
        connection.begin(self.behaviour.extra_headers)
        events = body.split(b"\n\n")[:-1]
        for place, event in enumerate(events):
            if self.behaviour.dies_after == place:
                connection.abort()
                return
            connection.chunk(event + b"\n\n")
        connection.end()

    async def _stream(self, endpoint: Endpoint, body: dict[str, Any], connection: _Connection) -> None:
        behaviour, count = self.behaviour, self._count(body)
        connection.begin(behaviour.extra_headers)
        for place in range(count):
            if behaviour.dies_after == place:
                connection.abort()
                return
            if behaviour.token_delay_s:
                await asyncio.sleep(behaviour.token_delay_s)
            reason = "stop" if place + 1 == count else None
            connection.chunk(shapes.chunk(endpoint, "stub-1", MODEL, f"w{place} ", reason, first=place == 0))
        if (body.get("stream_options") or {}).get("include_usage"):
            connection.chunk(
                shapes.usage_chunk(endpoint, "stub-1", MODEL, shapes.usage(PROMPT_TOKENS, count))
            )
        connection.chunk(shapes.DONE)
        connection.end()

    def _count(self, body: dict[str, Any]) -> int:
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        tokens = self.behaviour.tokens
        return tokens if limit is None else min(int(limit), tokens)

    def spawn(self, request: Received, connection: _Connection) -> asyncio.Task[None]:
        """Answers in a task that `close` would end."""
        task = asyncio.get_running_loop().create_task(self.answer(request, connection))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler({"message": "stub", "exception": error})


class _Connection(asyncio.Protocol):
    """HTTP/1.1 as plainly as it goes: content-length requests, one after the other."""

    def __init__(self, server: StubUpstream) -> None:
        self._server = server
        self._buffer = b""
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("The stub speaks over stream transports only.")
        self._transport = transport
        self._server.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections -= 1
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None or self._task.done():
            self._next()

    def _next(self) -> None:
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        method, path, _ = lines[0].split(" ", 2)
        request = Received(method, path.partition("?")[0], headers, rest[:length])
        self._buffer = rest[length:]
        self._server.received.append(request)
        self._task = self._server.spawn(request, self)
        self._task.add_done_callback(self._after)

    def _after(self, task: asyncio.Task[None]) -> None:
        if self._buffer and not task.cancelled():
            self._next()

    def reply(
        self,
        status: int,
        body: bytes,
        kind: str = "application/json",
        extra: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """A whole answer in one write."""
        head = b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n" % (
            status,
            _REASONS.get(status, b"Status"),
            kind.encode(),
            len(body),
        )
        lines = b"".join(b"%s: %s\r\n" % (name.encode(), value.encode()) for name, value in extra)
        self._transport.write(head + lines + b"\r\n" + body)

    def begin(self, extra: tuple[tuple[str, str], ...]) -> None:
        """The head of a streamed answer."""
        lines = b"".join(b"%s: %s\r\n" % (name.encode(), value.encode()) for name, value in extra)
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n" + lines + b"\r\n"
        )

    def chunk(self, data: bytes) -> None:
        """One chunk of a streamed answer."""
        self._transport.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end(self) -> None:
        """The end of a streamed answer; the connection stays open."""
        self._transport.write(b"0\r\n\r\n")

    def abort(self) -> None:
        """Cuts the connection in the middle of an answer."""
        self._transport.abort()
