"""From a request's facts to its answer: try, relay, try elsewhere, and end exactly once."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from loadwise.decision.facts import RequestFacts
from loadwise.errors import EngineError, RequestError
from loadwise.gateway.asgi import Exchange, RawHeaders, Send
from loadwise.gateway.attempt import Attempt
from loadwise.gateway.body import edited
from loadwise.gateway.events import broken_stream
from loadwise.gateway.fields import Fields, present
from loadwise.gateway.headers import from_engine, of_dispatch
from loadwise.gateway.retries import RetryBudget
from loadwise.ports import Answer, Call, Clock, Director, Dispatch

_log = logging.getLogger("loadwise.gateway")


class Relay:
    """Serves one request after another and keeps nothing of them."""

    def __init__(self, director: Director, clock: Clock, retries: RetryBudget) -> None:
        self._director = director
        self._clock = clock
        self._retries = retries

    async def serve(self, exchange: Exchange, facts: RequestFacts, call: Call, fields: Fields) -> None:
        """The request is answered, by another replica where one fails before its first byte.

        Raises `RequestError` when the director refuses it.
        """
        self._retries.note_request()
        tried: frozenset[str] = frozenset()
        while True:
            dispatch = self._dispatch(facts, tried)
            said = of_dispatch(dispatch)
            try:
                await self._attempt(
                    dispatch, _changed(call, fields, dispatch), exchange.send, [*exchange.headers, *said]
                )
            except EngineError as error:
                _log.warning("%s on replica %s failed: %s", facts.request_id, dispatch.replica_id, error)
                tried |= {dispatch.replica_id}
                if self._retries.take(len(tried)):
                    continue
                await exchange.reply_error(_no_answer(dispatch.member_id), said)
            except RequestError as error:
                await exchange.reply_error(error, said)
            return

    def _dispatch(self, facts: RequestFacts, tried: frozenset[str]) -> Dispatch:
        try:
            return self._director.dispatch(facts, tried)
        except RequestError as error:
            if tried and error.status == 503:
                raise _no_answer(facts.model) from None
            raise

    async def _attempt(self, dispatch: Dispatch, call: Call, send: Send, headers: RawHeaders) -> None:
        last = b""
        with Attempt(self._director, self._clock, dispatch) as attempt:
            answer = attempt.answer = await dispatch.engine.answer(call)
            async with _closing(answer.chunks):
                streaming = call.stream and answer.status < 400
                if streaming:
                    await _stream(answer, send, headers)
                else:
                    last = b"".join([chunk async for chunk in answer.chunks])
        # The engine is done: what the client does from here on says nothing about it.
        if not streaming:
            length = (b"content-length", b"%d" % len(last))
            await send(_start(answer, [length, *headers]))
        await send({"type": "http.response.body", "body": last})


def _changed(call: Call, fields: Fields, dispatch: Dispatch) -> Call:
    if not dispatch.changes:
        return call
    return replace(call, body=edited(call.body, dispatch.changes, present(fields, dispatch.changes)))


def _no_answer(name: str) -> RequestError:
    return RequestError(
        f"The engine of {name!r} failed before it answered. Try again.",
        status=502,
        kind="server_error",
        code="engine_failed",
    )


@asynccontextmanager
async def _closing(chunks: AsyncIterator[bytes]) -> AsyncIterator[None]:
    """Frees the engine's place at the end of the block, however it ends."""
    try:
        yield
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


def _start(answer: Answer, headers: RawHeaders) -> dict[str, object]:
    fields = [*from_engine(answer.headers), *headers]
    return {"type": "http.response.start", "status": answer.status, "headers": fields}


async def _stream(answer: Answer, send: Send, headers: RawHeaders) -> None:
    """Chunks go on as they come, no faster than the client takes them; all but the last message is sent."""
    # Nothing is sent before the first chunk is there: until then another replica may be tried.
    first = await anext(answer.chunks, b"")
    await send(_start(answer, headers))
    last = first
    try:
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for chunk in answer.chunks:
            last = chunk
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except Exception as error:  # noqa: BLE001 - whatever broke, the client is told and the outcome is a failure
        _log.warning("a stream broke: %s: %s", type(error).__name__, error)
        answer.progress.failed = True
        await send({"type": "http.response.body", "body": broken_stream(error, last), "more_body": True})
