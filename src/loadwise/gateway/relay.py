"""From a request's facts to its answer: try, relay, try elsewhere, and end exactly once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final

from loadwise.decision.facts import RequestFacts
from loadwise.errors import EngineError, RequestError
from loadwise.gateway.asgi import Exchange, RawHeaders
from loadwise.gateway.asked import in_the_clients_words
from loadwise.gateway.attempt import Attempt
from loadwise.gateway.body import edited
from loadwise.gateway.events import broken_stream
from loadwise.gateway.fields import Fields, present
from loadwise.gateway.headers import from_engine, of_dispatch
from loadwise.gateway.retries import RetryBudget
from loadwise.logs import get_logger, said_by
from loadwise.ports import Answer, Call, Clock, Director, Dispatch

log = get_logger(__name__)
# What engines that failed answer; another replica may do better.
FAILURES: Final = frozenset({500, 502, 503, 504})
# Sends the client what an attempt came to.
Tell = Callable[[], Awaitable[None]]


class Relay:
    """Serves one request after another and keeps nothing of them."""

    def __init__(self, director: Director, clock: Clock, retries: RetryBudget) -> None:
        self._director = director
        self._clock = clock
        self._retries = retries

    async def serve(self, exchange: Exchange, facts: RequestFacts, call: Call, fields: Fields) -> None:
        """The request is answered, by another replica where one fails before its first byte.

        Where none is left, the client is told how the last one failed. Raises `RequestError` when the
        director refuses the request.
        """
        self._retries.note_request()
        tried: frozenset[str] = frozenset()
        since_s, tell = call.received_s, None
        while tell is None or self._retries.take(len(tried)):
            try:
                dispatch = self._dispatch(facts, tried, fields)
            except RequestError as error:
                if tell is None or error.status < 500:
                    raise
                break
            attempt = Attempt(self._director, self._clock, dispatch, since_s)
            tell = await self._tried(attempt, call, fields, exchange)
            if tell is None:
                return
            tried |= {dispatch.replica_id}
            since_s = self._clock.monotonic_s()
        await tell()

    async def _tried(self, attempt: Attempt, call: Call, fields: Fields, exchange: Exchange) -> Tell | None:
        """None: the client has its answer. Else what tells it of a failure before the first byte."""
        said = of_dispatch(attempt.dispatch)
        try:
            return await self._attempt(attempt, call, fields, exchange, said)
        except EngineError as error:
            log.warning("attempt_failed", replica=attempt.dispatch.replica_id, error=said_by(error))
            return partial(exchange.reply_error, _no_answer(attempt.dispatch.member_id), said)
        except RequestError as error:
            await exchange.reply_error(error, said)
            return None

    def _dispatch(self, facts: RequestFacts, tried: frozenset[str], fields: Fields) -> Dispatch:
        try:
            return self._director.dispatch(facts, tried)
        except RequestError as error:
            if tried and error.status == 503:
                raise _no_answer(facts.model) from None
            raise in_the_clients_words(error, fields) from None

    async def _attempt(
        self, attempt: Attempt, call: Call, fields: Fields, exchange: Exchange, said: RawHeaders
    ) -> Tell | None:
        whole, dispatch = b"", attempt.dispatch
        with attempt:
            answer = attempt.answer = await dispatch.engine.answer(_changed(call, fields, dispatch))
            streaming = call.stream and answer.status < 400
            try:
                if streaming:
                    await _stream(answer, exchange, said)
                else:
                    whole = b"".join([chunk async for chunk in answer.chunks])
            finally:
                await _close(answer.chunks)
            attempt.over()
            if not streaming and answer.status not in FAILURES:
                # The client need not wait until its outcome is recorded.
                await _send_whole(exchange, answer, whole, said)
                return None
        if streaming:
            await exchange.send({"type": "http.response.body", "body": b""})
            return None
        return partial(_send_whole, exchange, answer, whole, said)


async def _send_whole(exchange: Exchange, answer: Answer, body: bytes, said: RawHeaders) -> None:
    length = (b"content-length", b"%d" % len(body))
    await exchange.begin(answer.status, _headers(answer, exchange, said, length))
    await exchange.send({"type": "http.response.body", "body": body})


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


async def _close(chunks: AsyncIterator[bytes]) -> None:
    """Frees the engine's place, also where the chunks were not read to their end."""
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()


def _headers(answer: Answer, exchange: Exchange, said: RawHeaders, *more: tuple[bytes, bytes]) -> RawHeaders:
    return [*from_engine(answer.headers), *more, *exchange.headers, *said]


async def _stream(answer: Answer, exchange: Exchange, said: RawHeaders) -> None:
    """Chunks go on as they come, no faster than the client takes them; all but the last message is sent."""
    # Nothing is sent before the first chunk is there: until then another replica may be tried.
    last = await anext(answer.chunks, b"")
    await exchange.begin(answer.status, _headers(answer, exchange, said))
    send = exchange.send
    try:
        await send({"type": "http.response.body", "body": last, "more_body": True})
        async for chunk in answer.chunks:
            last = chunk
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except Exception as error:  # noqa: BLE001 - whatever broke, the client is told and the outcome is a failure
        log.warning("stream_broke", error=said_by(error))
        answer.progress.failed = True
        await send({"type": "http.response.body", "body": broken_stream(error, last), "more_body": True})
