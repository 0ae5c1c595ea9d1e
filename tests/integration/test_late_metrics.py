"""An upstream too busy to answer `/metrics`, as the control loop reads it."""

from __future__ import annotations

import asyncio

from loadwise.clock import SystemClock
from loadwise.engines.openai_http import OpenAIEngine
from loadwise.optimizer.sensing import EngineReadings
from loadwise.testing import StubUpstream
from loadwise.testing.engine_contract import make_call


async def test_a_server_too_busy_to_tell_of_itself_is_read_before_the_loop_gives_up() -> None:
    stub, told = StubUpstream(), []
    engine = OpenAIEngine(await stub.start(), replica_id="far", clock=SystemClock())
    await engine.start()
    stub.behaviour.hold = asyncio.Event()
    answering = asyncio.create_task(engine.answer(make_call()))
    readings = EngineReadings(lambda: {"far": engine}, lambda name, error: told.append((name, error)))
    async with asyncio.timeout(30):
        while not stub.active:
            await asyncio.sleep(0)
        await readings.refresh()
    assert told == [("far", None)]
    reading = readings["far"]
    assert reading is not None
    assert reading.running_requests == 1
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)
    await engine.close()
    await stub.close()
