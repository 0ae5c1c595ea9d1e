"""What a member's own engine cannot do is answered by the one beside it, opened when it is needed."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from loadwise.decision.facts import Endpoint, Feature
from loadwise.engines.rendering import RenderedEngine
from loadwise.engines.rendering.aside import Aside
from loadwise.errors import ConfigurationError
from loadwise.testing import FakeTokenEngine
from loadwise.testing.engine_contract import EngineContract, SamplingContract, make_call

TOP = frozenset({Feature.TOP_LOGPROBS})
CHAT = {"endpoint": Endpoint.CHAT, "logprobs": True, "max_tokens": 3}


def without_top() -> FakeTokenEngine:
    return FakeTokenEngine(features=FakeTokenEngine().capabilities.features - TOP)


class Beside:
    """Opens a fake engine when told to, and counts how often."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.opened: list[FakeTokenEngine] = []
        self.may_open = asyncio.Event()
        self.failure = failure

    async def open(self) -> FakeTokenEngine:
        await self.may_open.wait()
        if self.failure is not None:
            raise self.failure
        engine = FakeTokenEngine()
        await engine.start()
        self.opened.append(engine)
        return engine


@pytest.fixture
async def pair(tokenizer_folder, clock):
    own, beside = without_top(), Beside()
    engine = RenderedEngine(own, tokenizer_folder, "t", "t-0", clock, Aside(TOP, beside.open))
    await engine.start()
    yield engine, own, beside
    beside.may_open.set()
    await engine.close()


class TestPair(EngineContract, SamplingContract):
    @pytest.fixture
    async def engine(self, pair):
        engine, _, beside = pair
        beside.may_open.set()
        return engine


async def test_only_what_needs_it_is_answered_beside(pair):
    engine, own, beside = pair
    beside.may_open.set()
    assert Feature.TOP_LOGPROBS in engine.capabilities.features
    plain = await engine.answer(make_call(**CHAT))
    assert (plain.progress.aside, len(own.submitted), beside.opened) == (False, 1, [])
    asked = await engine.answer(make_call(**CHAT, top_logprobs=2))
    assert (asked.status, asked.progress.aside, len(own.submitted)) == (200, True, 1)
    assert len(beside.opened[0].submitted) == 1


async def test_it_is_opened_once_however_many_ask_and_whoever_leaves(pair):
    engine, _, beside = pair
    first, second = (asyncio.create_task(engine.answer(make_call(**CHAT, top_logprobs=2))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    beside.may_open.set()
    assert (await second).status == 200
    assert len(beside.opened) == 1


async def test_its_requests_count_in_the_members_reading(pair):
    engine, _, beside = pair
    before = await engine.observe()
    beside.may_open.set()
    answer = await engine.answer(make_call(**{**CHAT, "max_tokens": 50}, top_logprobs=2, stream=True))
    assert (await engine.observe()).running_requests == before.running_requests + 1
    await answer.chunks.aclose()


@pytest.mark.parametrize(
    ("fields", "param"),
    [({**CHAT, "top_logprobs": 2}, "top_logprobs"), ({"logprobs": 2}, "logprobs")],
)
async def test_one_that_cannot_be_opened_is_told_by_the_field(tokenizer_folder, clock, fields, param):
    beside = Beside(ConfigurationError("no room"))
    beside.may_open.set()
    engine = RenderedEngine(without_top(), tokenizer_folder, "t", "t-0", clock, Aside(TOP, beside.open))
    await engine.start()
    answer = await engine.answer(make_call(**fields))
    error = msgspec.json.decode(b"".join([chunk async for chunk in answer.chunks]))["error"]
    assert (answer.status, error["param"]) == (400, param)
    assert "no room" in error["message"]
    assert (await engine.answer(make_call())).status == 200
    await engine.close()
