"""The shipped fakes do what tests of others rely on."""

import json

import aiohttp
import pytest

from loadwise.errors import EngineError
from loadwise.testing import Behaviour, FakeClock, FakeEngine, StubUpstream
from loadwise.testing.engine_contract import make_call, read


def test_a_fake_clock_moves_only_when_told():
    clock = FakeClock(5.0, 100.0)
    clock.advance(1.5)
    assert (clock.monotonic_s(), clock.wall_s()) == (6.5, 101.5)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-1)


async def test_a_fake_engine_fails_as_it_is_told():
    engine = FakeEngine()
    engine.status = 503
    assert (await engine.answer(make_call())).status == 503
    engine.status = 200
    engine.breaks_after = 1
    answer = await engine.answer(make_call(stream=True))
    assert b'"error"' in await read(answer)
    assert answer.progress.failed
    engine.breaks_after = 0
    for streamed in (True, False):
        with pytest.raises(EngineError):
            await engine.answer(make_call(stream=streamed))
    engine.failure = EngineError("down")
    with pytest.raises(EngineError, match="down"):
        await engine.answer(make_call())
    assert engine.running == 0


async def test_a_fake_engine_refuses_what_its_capabilities_lack():
    from loadwise.decision.facts import Capabilities

    engine = FakeEngine(capabilities=Capabilities())
    answer = await engine.answer(make_call(tools=[{}]))
    assert (answer.status, json.loads(await read(answer))["error"]["param"]) == (400, "tools")
    assert await engine.count_tokens(make_call(prompt=[1, 2])) == 2


async def test_the_stub_answers_pipelined_requests_one_after_the_other():
    stub = StubUpstream(Behaviour(tokens=1))
    url = await stub.start()
    async with aiohttp.ClientSession() as session:
        for path, status in {"/health": 200, "/nowhere": 404, "/metrics": 404}.items():
            async with session.get(url + path) as response:
                assert response.status == status
        async with session.post(url + "/v1/completions", json={"prompt": "x"}) as response:
            assert (await response.json())["usage"]["completion_tokens"] == 1
    assert len(stub.received) == 4
    await stub.close()
