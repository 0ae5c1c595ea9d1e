"""An engine that fails before its first byte is replaced by another; after it, the client is told."""

from __future__ import annotations

import asyncio

import pytest

from loadwise.errors import EngineError, RequestError
from loadwise.gateway.retries import RetryBudget

BODY = {"model": "auto", "prompt": "a"}
EVENTS = [("content-type", "text/event-stream")]


def endings(site) -> list[tuple[str, str]]:
    return [(outcome.member_id, outcome.ending.value) for outcome in site.director.outcomes]


async def sent_by(site, seen) -> None:
    """One request; `seen` is shown each message before it is sent."""
    app = site.app

    async def watched(scope, receive, send):
        async def sending(message):
            seen(message)
            await send(message)

        await app(scope, receive, sending)

    site.app = watched
    await site.ask("POST", "/v1/completions", BODY)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("late", [False, True])
async def test_another_engine_answers_when_one_fails_before_its_first_byte(site_of, scripted, stream, late):
    broken = scripted(script=[EngineError("down")]) if late else scripted(refusal=EngineError("down"))
    site = site_of(one=broken, two=scripted(script=[b"data: 1\n\n"], headers=EVENTS))
    reply = await site.ask("POST", "/v1/completions", {**BODY, "stream": stream})
    assert (reply.status, reply.body) == (200, b"data: 1\n\n")
    assert reply.headers["x-loadwise-member"] == "two"
    assert endings(site) == [("one", "failed"), ("two", "succeeded")]


async def test_a_whole_answer_that_breaks_is_tried_again(site_of, scripted):
    site = site_of(one=scripted(script=[b'{"half', EngineError("down")]), two=scripted())
    reply = await site.ask("POST", "/v1/completions", BODY)
    assert reply.body == b'{"ok":true}'
    assert endings(site) == [("one", "failed"), ("two", "succeeded")]


async def test_when_all_fail_the_client_gets_a_502_without_details(site_of, scripted):
    refusal = EngineError("http://10.0.0.7:8000 refused")
    site = site_of(one=scripted(refusal=refusal), two=scripted(refusal=refusal))
    reply = await site.ask("POST", "/v1/completions", BODY)
    assert (reply.status, reply.error["code"]) == (502, "engine_failed")
    assert b"10.0.0.7" not in reply.body
    assert endings(site) == [("one", "failed"), ("two", "failed")]


async def test_attempts_are_bounded(site_of, scripted):
    engines = {name: scripted(refusal=EngineError("down")) for name in "abcde"}
    site = site_of(**engines)
    reply = await site.ask("POST", "/v1/completions", BODY)
    assert reply.status == 502
    assert reply.headers["x-loadwise-member"] == "c"
    assert len(site.director.outcomes) == 3


async def test_a_client_has_its_whole_answer_before_its_outcome_is_recorded(site_of):
    site, order = site_of(), []
    finish = site.director.finish

    def recording(dispatch, outcome):
        order.append("recorded")
        finish(dispatch, outcome)

    site.director.finish = recording
    await sent_by(site, lambda message: order.append(message["type"]))
    assert order == ["http.response.start", "http.response.body", "recorded"]


async def test_a_whole_answer_that_cannot_be_sent_says_nothing_about_its_engine(site_of):
    site = site_of()

    def gone(message):
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await sent_by(site, gone)
    assert endings(site) == [("fast", "succeeded")]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_another_engine_answers_when_one_answers_that_it_failed(site_of, scripted, status, stream):
    failing = scripted(status=status, script=[b'{"error":{}}'])
    site = site_of(one=failing, two=scripted(script=[b"data: 1\n\n"], headers=EVENTS))
    reply = await site.ask("POST", "/v1/completions", {**BODY, "stream": stream})
    assert (reply.status, reply.body) == (200, b"data: 1\n\n")
    assert endings(site) == [("one", "failed"), ("two", "succeeded")]
    assert failing.closed == 1


async def test_when_all_answer_that_they_failed_the_client_gets_the_last_ones_words(site_of, scripted):
    site = site_of(
        one=scripted(status=500, script=[b"first"]),
        two=scripted(status=503, script=[b"last"], headers=[("retry-after", "7")]),
    )
    reply = await site.ask("POST", "/v1/completions", BODY)
    assert (reply.status, reply.body, reply.headers["retry-after"]) == (503, b"last", "7")
    assert reply.headers["x-loadwise-member"] == "two"
    assert endings(site) == [("one", "failed"), ("two", "failed")]


@pytest.mark.parametrize("status", [400, 404, 422, 429, 501])
async def test_what_any_engine_would_answer_is_not_tried_again(site_of, scripted, status):
    site = site_of(one=scripted(status=status, script=[b"own"]), two=scripted())
    reply = await site.ask("POST", "/v1/completions", BODY)
    assert (reply.status, reply.body) == (status, b"own")
    assert len(site.director.outcomes) == 1


async def test_a_refusal_is_never_tried_again(site_of, scripted):
    full = RequestError("full", status=429, kind="rate_limit_error", retry_after_s=0.2)
    site = site_of(one=scripted(refusal=full), two=scripted())
    reply = await site.ask("POST", "/v1/completions", BODY)
    assert (reply.status, reply.headers["retry-after"]) == (429, "1")
    assert [outcome.status for outcome in site.director.outcomes] == [429]


@pytest.mark.parametrize("first", [b"data: 1\n\n", b"data: 1"])
async def test_a_broken_stream_ends_with_an_error_event_and_done(site_of, scripted, first):
    site = site_of(
        one=scripted(script=[first, EngineError("http://10.0.0.7 gone")], headers=EVENTS), two=scripted()
    )
    reply = await site.ask("POST", "/v1/completions", {**BODY, "stream": True})
    *_, event, done, end = reply.body.split(b"\n\n")
    assert reply.status == 200
    assert event.startswith(b'data: {"error":{"message":')
    assert (done, end) == (b"data: [DONE]", b"")
    assert b"10.0.0.7" not in reply.body
    assert endings(site) == [("one", "failed")]


async def test_every_engine_stream_is_closed(site_of, scripted):
    engine = scripted(script=[b"a", b"b"])
    site = site_of(one=engine)
    for stream in (True, False):
        await site.ask("POST", "/v1/completions", {**BODY, "stream": stream})
    assert engine.closed == 2


async def test_a_cancelled_request_is_abandoned_and_stays_cancelled(site_of, scripted, when):
    engine = scripted(script=[asyncio.Event()])
    site = site_of(one=engine)
    task = asyncio.create_task(site.ask("POST", "/v1/completions", BODY))
    await when(lambda: len(engine.calls) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert endings(site) == [("one", "abandoned")]
    assert site.director.in_flight == 0


def test_retries_stay_a_fifth_of_the_requests_once_the_reserve_is_used():
    budget = RetryBudget()
    retried = 0
    for _ in range(1000):
        budget.note_request()
        retried += budget.take(1)
    assert 200 <= retried <= 210


async def test_an_engine_that_cannot_even_measure_is_a_502(site_of, scripted):
    site = site_of(one=scripted())

    async def measure(*_: object) -> None:
        raise EngineError("http://10.0.0.7 refused")

    site.director.measure = measure
    reply = await site.ask("POST", "/v1/completions", BODY)
    assert (reply.status, reply.error["code"]) == (502, "engine_failed")
    assert b"10.0.0.7" not in reply.body
