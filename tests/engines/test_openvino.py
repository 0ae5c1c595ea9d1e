"""The OpenVINO engine: a child that steps, and what happens when it does not."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.engines.openvino import OpenVinoEngine
from loadwise.engines.openvino import engine as engine_module
from loadwise.engines.openvino.configs import read_configs
from loadwise.engines.openvino.precision import PRECISIONS
from loadwise.engines.openvino.wire import (
    GOES_ON,
    LOST,
    REACHED_LENGTH,
    STOPPED,
    Cancel,
    Event,
    Frames,
    Load,
    Request,
    Step,
    Submit,
    frame,
)
from loadwise.engines.openvino.worker import Sequence, Worker, kv_blocks
from loadwise.errors import ConfigurationError, EngineError, RequestError
from loadwise.ports import SamplingParams
from loadwise.testing import FakeClock

CONFIG = {"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 128, "max_position_embeddings": 64}
LONG = SamplingParams(max_tokens=900, ignore_eos=True, temperature=0)
PROMPT = (5, 6, 7, 8)


@pytest.fixture
async def engine(openvino_token_engine):
    await openvino_token_engine.start()
    yield openvino_token_engine
    await openvino_token_engine.close()


async def tokens(stream):
    return [token async for event in stream for token in event.token_ids]


async def test_a_stopped_token_is_not_part_of_the_answer(engine):
    greedy = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    whole = await tokens(engine.submit(PROMPT, greedy))
    stop = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, stop_token_ids=(whole[2],))
    stream = engine.submit(PROMPT, stop)
    events = [event async for event in stream]
    assert [t for e in events for t in e.token_ids] == whole[: whole.index(whole[2])]
    assert events[-1].finish_reason == "stop"


async def test_a_cancelled_sequence_gives_its_place_to_the_next(engine):
    streams = [engine.submit(PROMPT, LONG) for _ in range(2)]
    waiting = engine.submit((9, 10), SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    streams[0].cancel()
    streams[0].cancel()
    assert len(await tokens(waiting)) == 2
    assert await tokens(streams[0]) == []
    streams[1].cancel()
    assert engine.reading().running_requests == 0


async def test_a_full_queue_is_refused_with_a_time_to_come_back(engine):
    streams = [engine.submit(PROMPT, LONG) for _ in range(3)]
    with pytest.raises(RequestError) as raised:
        engine.submit(PROMPT, LONG)
    assert raised.value.status == 429
    assert raised.value.retry_after_s >= 1
    assert (engine.reading().running_requests, engine.reading().waiting_requests) == (2, 1)
    for stream in streams:
        stream.cancel()


async def test_readings_show_what_was_done(engine):
    await tokens(engine.submit(PROMPT, SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)))
    reading = engine.reading()
    assert reading.output_tokens_per_s > 0
    assert reading.prompt_tokens_per_s > 0
    assert reading.time_to_first_token_s is not None
    assert reading.kv_cache_usage_fraction == 0.0


async def test_a_child_that_dies_fails_its_streams_and_comes_back(engine, monkeypatch):
    monkeypatch.setattr(engine_module, "RESTART_S", 0.0)
    stream = engine.submit(PROMPT, LONG)
    await anext(aiter(stream))
    os.kill(engine._child.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="ended unexpectedly"):
        await tokens(stream)
    with pytest.raises(EngineError):
        engine.submit(PROMPT, LONG)
    async with asyncio.timeout(60):
        await engine._restarting
    assert len(await tokens(engine.submit(PROMPT, SamplingParams(max_tokens=2, ignore_eos=True)))) == 2


async def test_closing_ends_streams_with_an_error(engine):
    stream = engine.submit(PROMPT, LONG)
    await anext(aiter(stream))
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await tokens(stream)


async def test_a_folder_that_openvino_cannot_load_says_why(tmp_path):
    pytest.importorskip("openvino_genai")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    engine = OpenVinoEngine(tmp_path, clock=FakeClock())
    with pytest.raises(EngineError, match="OpenVINO cannot run"):
        await engine.start()
    with pytest.raises(EngineError):
        engine.submit(PROMPT, LONG)
    await engine.close()


class FakePipeline:
    """Says each sequence's prompt again, one token a step."""

    def __init__(self):
        self.steps = 0
        self.cancelled = []

    def add(self, submit):
        pipeline = self

        class Handle:
            def cancel(self):
                pipeline.cancelled.append(submit.key)

        return Handle()

    def step(self):
        self.steps += 1

    def read(self, sequence: Sequence):
        place = sequence.length - len(sequence.submit.prompt_ids)
        sequence.length += 1
        last = place + 1 == sequence.submit.sampling.max_tokens
        return Event(
            sequence.submit.key,
            (sequence.submit.prompt_ids[place],),
            None,
            REACHED_LENGTH if last else GOES_ON,
        )


def run_worker(messages, max_running=1):
    """What a worker writes for these messages, which all wait in its pipe before it begins."""
    source, feed = os.pipe()
    drain, sink = os.pipe()
    pipeline = FakePipeline()
    for message in messages:
        os.write(feed, frame(message))
    worker = Worker(pipeline, max_running, source, sink)
    worker._receive()
    while worker._running or worker._waiting:
        worker._turn()
    os.close(feed)
    worker.run()
    os.close(sink)
    with os.fdopen(drain, "rb") as file:
        steps = list(Frames(Step).feed(file.read()))
    os.close(source)
    return steps, pipeline


def submit(key, length):
    return Submit(key, tuple(range(10, 10 + length)), (), SamplingParams(max_tokens=length))


def test_a_worker_runs_what_has_a_place_and_then_what_waits():
    steps, _ = run_worker([submit(1, 2), submit(2, 1)])
    assert [[event.key for event in step.events] for step in steps] == [[1], [1], [2]]
    assert [(step.running, step.waiting) for step in steps] == [(1, 1), (0, 1), (0, 0)]
    assert steps[0].held_tokens == 3


def test_a_worker_steps_all_places_together():
    steps, pipeline = run_worker([submit(1, 2), submit(2, 2)], max_running=2)
    assert pipeline.steps == 2
    assert [event.key for event in steps[0].events] == [1, 2]


def test_a_worker_forgets_what_was_cancelled_before_it_ran():
    steps, _ = run_worker([submit(1, 1), submit(2, 1), Cancel(2)])
    assert [event.key for step in steps for event in step.events] == [1]


def test_a_worker_steps_once_more_when_all_it_ran_was_cancelled():
    source, feed = os.pipe()
    drain, sink = os.pipe()
    pipeline = FakePipeline()
    worker = Worker(pipeline, 1, source, sink)
    for message in (submit(1, 5), Cancel(1)):
        os.write(feed, frame(message))
        worker._receive()
        worker._turn()
    os.close(feed)
    worker.run()
    assert pipeline.cancelled == [1]
    os.close(sink)
    os.close(source)
    with os.fdopen(drain, "rb") as file:
        steps = list(Frames(Step).feed(file.read()))
    assert [(step.running, step.held_tokens) for step in steps] == [(1, 6), (0, 0)]
    assert pipeline.steps == 2


MESSAGES = st.lists(
    st.builds(Cancel, st.integers(0, 2**40))
    | st.builds(
        Submit, st.integers(0, 9), st.lists(st.integers(0, 9)).map(tuple), st.just((1,)), st.just(LONG)
    )
    | st.builds(Load, st.text(), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.none())
)


@given(messages=MESSAGES, size=st.integers(1, 50))
def test_frames_survive_any_cutting(messages, size):
    raw = b"".join(map(frame, messages))
    frames = Frames(Request)
    assert [
        m for start in range(0, len(raw), size) for m in frames.feed(raw[start : start + size])
    ] == messages


def test_the_cache_holds_the_budget_and_never_less_than_one_context(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    block_bytes = 2 * 2 * 2 * 128 * 32
    assert kv_blocks(tmp_path, 10 * block_bytes, 64) == 10
    assert kv_blocks(tmp_path, 1, 64) == 3


def cache_bytes_of(folder, properties):
    """What a child's cache takes after a warm-up."""
    script = (
        "import json, sys\n"
        "from loadwise.engines.openvino.wire import Load\n"
        "from loadwise.engines.openvino.worker import Pipeline\n"
        "pipeline = Pipeline(Load(sys.argv[1], 2, 2**20, 64, 1, json.loads(sys.argv[2])))\n"
        "pipeline.warm_up(2)\n"
        "print(pipeline.cache_bytes)\n"
    )
    command = [sys.executable, "-c", script, str(folder), json.dumps(properties)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def test_a_cache_of_eight_bits_is_a_choice_that_nobody_makes_by_itself(openvino_folder):
    small, whole = (cache_bytes_of(openvino_folder, PRECISIONS[name].properties) for name in ("int8", "fp16"))
    assert small < whole
    assert cache_bytes_of(openvino_folder, {}) == whole


def test_end_of_sequence_ids_come_from_the_generation_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"eos_token_id": 2}))
    assert read_configs(tmp_path)[1] == (2,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert read_configs(tmp_path)[1] == (3, 4)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_a_configuration_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigurationError):
        read_configs(Path(tmp_path))


def test_events_become_token_events():
    assert engine_module._translated(Event(1, (5,), (-0.5,), GOES_ON)).finish_reason is None
    assert engine_module._translated(Event(1, (5,), None, REACHED_LENGTH)).finish_reason == "length"
    assert engine_module._translated(Event(1, (), None, STOPPED)).finish_reason == "stop"
    assert isinstance(engine_module._translated(Event(1, (), None, LOST)), EngineError)
