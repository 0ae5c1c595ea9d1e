"""A whole `Engine` without a tokenizer: words instead of tokens, for tests of what stands above it."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from loadwise.decision.facts import Capabilities, EngineReading, Feature
from loadwise.errors import EngineError
from loadwise.ports import Answer, Call, Clock, Progress
from loadwise.testing import shapes
from loadwise.testing.clock import FakeClock
from loadwise.testing.fakes import at_once

JSON_HEADERS = (("content-type", "application/json"),)
STREAM_HEADERS = (("content-type", "text/event-stream; charset=utf-8"),)
# Fields that a fake refuses when its capabilities lack them.
REFUSED = ("tools", "response_format", "logit_bias", "reasoning_effort")


class FakeEngine:
    """Answers `words`, one per turn of `pace`; every fault a test needs can be switched on.

    `failure`: `answer` raises it before the first byte. `breaks_after`: a stream dies after so many
    words. `status`: every answer is an error with it. `calls` keeps what came in, newest last.
    """

    def __init__(
        self,
        words: tuple[str, ...] = ("one ", "two ", "three"),
        *,
        replica_id: str = "fake-0",
        model_id: str = "fake",
        capacity: int = 4,
        queue_limit: int = 8,
        capabilities: Capabilities | None = None,
        pace: Callable[[], Awaitable[None]] = at_once,
        clock: Clock | None = None,
    ) -> None:
        self.capabilities = capabilities or Capabilities(features=frozenset(Feature), context_tokens=1024)
        self.words = words
        self.replica_id = replica_id
        self.model_id = model_id
        self.capacity = capacity
        self.queue_limit = queue_limit
        self.failure: EngineError | None = None
        self.breaks_after: int | None = None
        self.status = 200
        self.calls: deque[Call] = deque(maxlen=1000)
        self.started = False
        self.running = 0
        self._pace = pace
        self._clock = clock or FakeClock()
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._queue)

    async def answer(self, call: Call) -> Answer:
        """The words as an answer; 400 for what the capabilities lack, 429 beyond the queue."""
        self.calls.append(call)
        if self.failure is not None:
            raise self.failure
        body = json.loads(call.body)
        if (refused := self._refused(body)) is not None:
            return refused
        await self._enter()
        progress = Progress(prompt_tokens=_count(body), output_tokens=0)
        if call.stream:
            parts = self._stream(call, body, progress)
            chunks = _Chunks(await parts.__anext__(), parts)
            return Answer(status=200, headers=STREAM_HEADERS, chunks=chunks, progress=progress)
        return await self._whole(call, body, progress)

    async def count_tokens(self, call: Call) -> int | None:
        """Words of the messages or of the prompt."""
        return _count(json.loads(call.body))

    async def observe(self) -> EngineReading:
        """What runs and waits now."""
        return EngineReading(
            replica_id=self.replica_id,
            read_s=self._clock.monotonic_s(),
            running_requests=self.running,
            waiting_requests=self.waiting,
            capacity_requests=self.capacity,
            queue_capacity_requests=self.queue_limit,
        )

    async def start(self) -> None:
        """Marks it started."""
        self.started = True

    async def close(self) -> None:
        """Marks it closed; new calls raise `EngineError`."""
        self.started = False
        self.failure = EngineError("The engine was closed.")

    def _refused(self, body: dict[str, Any]) -> Answer | None:
        for field in REFUSED:
            if body.get(field) and Feature(field) not in self.capabilities.features:
                return _error(400, f"'{field}' is not supported by this model.", param=field)
        if self.status != 200:
            return _error(self.status, "As the test asked.")
        if self.running >= self.capacity and self.waiting >= self.queue_limit:
            return _error(429, "The waiting queue is full.", retry_after=True)
        return None

    async def _enter(self) -> None:
        """Takes a place, waiting for one that another request leaves."""
        if self.running < self.capacity:
            self.running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            # The place may have been handed over just before the cancellation.
            if turn.done() and not turn.cancelled():
                self._leave()
            else:
                self._queue.remove(turn)
            raise

    def _leave(self) -> None:
        """Hands the place to who waits longest, or frees it."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    async def _words(
        self, body: dict[str, Any], progress: Progress
    ) -> AsyncGenerator[tuple[str, str | None], None]:
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or len(self.words)
        endless = bool(body.get("ignore_eos"))
        count = limit if endless else min(limit, len(self.words))
        for place in range(count):
            await self._pace()
            if self.breaks_after is not None and place >= self.breaks_after:
                raise EngineError("The fake engine died, as the test asked.")
            if progress.first_token_s is None:
                progress.first_token_s = self._clock.monotonic_s()
            progress.output_tokens = place + 1
            reason = None if place + 1 < count else "stop" if count == len(self.words) else "length"
            progress.finish_reason = reason
            yield self.words[place % len(self.words)], reason

    async def _whole(self, call: Call, body: dict[str, Any], progress: Progress) -> Answer:
        try:
            parts = [word async for word, _ in self._words(body, progress)]
        finally:
            self._leave()
        tokens = shapes.usage(progress.prompt_tokens or 0, len(parts))
        raw = shapes.whole(
            call.endpoint,
            call.request_id,
            self.model_id,
            "".join(parts),
            progress.finish_reason or "stop",
            tokens,
        )
        return Answer(status=200, headers=JSON_HEADERS, chunks=_one(raw), progress=progress)

    async def _stream(
        self, call: Call, body: dict[str, Any], progress: Progress
    ) -> AsyncGenerator[bytes, None]:
        shape = (call.endpoint, call.request_id, self.model_id)
        sent = False
        try:
            async for word, reason in self._words(body, progress):
                yield shapes.chunk(*shape, word, reason, first=not sent)
                sent = True
            if (body.get("stream_options") or {}).get("include_usage"):
                tokens = shapes.usage(progress.prompt_tokens or 0, progress.output_tokens or 0)
                yield shapes.usage_chunk(*shape, tokens)
            yield shapes.DONE
        except EngineError as error:
            if not sent:
                raise
            progress.failed = True
            yield b"data: " + shapes.error(str(error), kind="server_error") + b"\n\n" + shapes.DONE
        finally:
            self._leave()


class _Chunks:
    """A stream whose first chunk is known; closing it closes the rest."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        self._first: bytes | None = first
        self._rest = rest

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        first, self._first = self._first, None
        return await self._rest.__anext__() if first is None else first

    async def aclose(self) -> None:
        await self._rest.aclose()


def _count(body: dict[str, Any]) -> int:
    """Words of a body's prompt or messages; token ids count one each."""
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        return len(prompt)
    texts = [prompt] if isinstance(prompt, str) else [str(m.get("content")) for m in body.get("messages", ())]
    return sum(len(text.split()) for text in texts)


def _error(status: int, message: str, *, param: str | None = None, retry_after: bool = False) -> Answer:
    kind = (
        "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    )
    headers = [*JSON_HEADERS, ("retry-after", "1")] if retry_after else JSON_HEADERS
    return Answer(status=status, headers=headers, chunks=_one(shapes.error(message, kind=kind, param=param)))


async def _one(raw: bytes) -> AsyncGenerator[bytes, None]:
    yield raw
