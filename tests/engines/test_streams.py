"""A queued stream hands over what came, in order, once."""

import asyncio

import pytest

from loadwise.engines.streams import QueuedStream
from loadwise.errors import EngineError
from loadwise.ports import TokenEvent


@pytest.fixture
def cancelled():
    return []


@pytest.fixture
def stream(cancelled):
    return QueuedStream(lambda: cancelled.append(True))


async def test_events_that_waited_come_as_one(stream):
    stream.push(TokenEvent(token_ids=(1,), logprobs=(-1.0,), top_logprobs=(((1, -1.0),),)))
    stream.push(
        TokenEvent(token_ids=(2, 3), logprobs=(-2.0, -3.0), top_logprobs=((), ()), finish_reason="stop")
    )
    events = [event async for event in stream]
    assert len(events) == 1
    assert events[0].token_ids == (1, 2, 3)
    assert events[0].logprobs == (-1.0, -2.0, -3.0)
    assert events[0].top_logprobs == (((1, -1.0),), (), ())
    assert events[0].finish_reason == "stop"


async def test_a_failure_comes_after_what_came_before_it(stream):
    stream.push(TokenEvent(token_ids=(1,)))
    stream.push(TokenEvent(token_ids=(2,)))
    stream.push(EngineError("gone"))
    stream.push(TokenEvent(token_ids=(3,)))
    assert (await anext(stream)).token_ids == (1, 2)
    with pytest.raises(EngineError, match="gone"):
        await anext(stream)


async def test_a_waiting_reader_is_woken_by_news_and_by_cancellation(stream, cancelled):
    reader = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    stream.push(TokenEvent(token_ids=(1,)))
    assert (await reader).token_ids == (1,)
    reader = asyncio.create_task(anext(stream, None))
    await asyncio.sleep(0)
    stream.cancel()
    stream.cancel()
    assert await reader is None
    assert cancelled == [True]


async def test_cancelling_after_the_end_frees_nothing_twice(stream, cancelled):
    stream.push(TokenEvent(token_ids=(), finish_reason="stop"))
    stream.cancel()
    assert cancelled == []
    assert len([event async for event in stream]) == 1
