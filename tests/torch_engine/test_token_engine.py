"""The torch engine behind its port: the shipped contract, and what only it promises."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from loadwise.clock import SystemClock
from loadwise.engines.rendering import RenderedEngine
from loadwise.engines.torch import TorchTokenEngine
from loadwise.errors import ConfigurationError, EngineError, MissingExtraError, RequestError
from loadwise.ports import SamplingParams, TokenEvent, TokenStream
from loadwise.testing.engine_contract import BoundedQueueContract, EngineContract, SamplingContract

GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
PATIENCE_S = 60


def make(folder: Path, **changes: Any) -> TorchTokenEngine:
    options: dict[str, Any] = {"clock": SystemClock(), "max_running": 2, "queue_limit": 4}
    return TorchTokenEngine(folder, **options | changes)


class TestContract(EngineContract, SamplingContract):
    @pytest.fixture
    async def engine(self, served_folder: Path) -> AsyncIterator[RenderedEngine]:
        inner = make(served_folder, max_running=4, queue_limit=16)
        engine = RenderedEngine(inner, served_folder, "tiny", "tiny-0", SystemClock())
        await engine.start()
        yield engine
        await engine.close()


class TestQueue(BoundedQueueContract):
    @pytest.fixture
    async def engine(self, served_folder: Path) -> AsyncIterator[RenderedEngine]:
        inner = make(served_folder, max_running=self.places, queue_limit=self.queue)
        engine = RenderedEngine(inner, served_folder, "tiny", "tiny-0", SystemClock())
        await engine.start()
        yield engine
        await engine.close()


@pytest.fixture
async def engine(llama_folder: Path) -> AsyncIterator[TorchTokenEngine]:
    engine = make(llama_folder)
    await engine.start()
    yield engine
    await engine.close()


async def read(stream: TokenStream) -> list[TokenEvent]:
    async with asyncio.timeout(PATIENCE_S):
        return [event async for event in stream]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            # Not 0: a spinning loop would keep the interpreter's lock from the engine's own thread.
            await asyncio.sleep(0.001)


async def test_events_carry_tokens_and_end_with_a_reason(engine: TorchTokenEngine) -> None:
    events = await read(engine.submit([5, 6], GREEDY))
    assert [len(event.token_ids) for event in events] == [1] * 6
    assert [event.finish_reason for event in events] == [None] * 5 + ["length"]
    assert events[0].logprobs is None


async def test_stop_token_ends_with_an_empty_event(engine: TorchTokenEngine) -> None:
    events = await read(engine.submit([5, 6], GREEDY))
    stop = events[0].token_ids
    ended = await read(
        engine.submit([5, 6], SamplingParams(max_tokens=6, temperature=0.0, stop_token_ids=stop))
    )
    assert ended == [TokenEvent(token_ids=(), finish_reason="stop")]


async def test_logprobs_come_with_each_token(engine: TorchTokenEngine) -> None:
    events = await read(
        engine.submit([5], SamplingParams(max_tokens=2, temperature=0.0, logprobs=3, ignore_eos=True))
    )
    for event in events:
        assert event.logprobs is not None
        assert event.top_logprobs is not None
        assert event.top_logprobs[0][0] == (event.token_ids[0], event.logprobs[0])
        assert len(event.top_logprobs[0]) == 3


async def test_event_loop_turns_while_the_model_runs(engine: TorchTokenEngine) -> None:
    turns = 0
    reading = asyncio.create_task(
        read(engine.submit([5] * 60, SamplingParams(max_tokens=30, ignore_eos=True)))
    )
    while not reading.done():
        turns += 1
        await asyncio.sleep(0)
    assert reading.result()[-1].finish_reason == "length"
    assert turns > 30


async def test_cancelled_stream_ends_and_its_place_is_free(engine: TorchTokenEngine) -> None:
    stream = engine.submit([5], SamplingParams(max_tokens=90, ignore_eos=True))
    await until(lambda: engine.reading().running_requests == 1)
    stream.cancel()
    stream.cancel()
    assert all(event.finish_reason is None for event in await read(stream))
    await until(lambda: engine.reading().running_requests == 0)
    assert engine._streams == {}


async def test_closing_ends_streams_with_an_engine_error(llama_folder: Path) -> None:
    engine = make(llama_folder, max_running=1)
    await engine.start()
    streams = [engine.submit([5], SamplingParams(max_tokens=90, ignore_eos=True)) for _ in range(3)]
    await engine.close()
    await engine.close()
    for stream in streams:
        with pytest.raises(EngineError, match="closed"):
            await read(stream)
    with pytest.raises(EngineError, match="start it first"):
        engine.submit([5], GREEDY)


async def test_failing_step_ends_those_who_ran_and_the_engine_goes_on(
    engine: TorchTokenEngine, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = await read(engine.submit([5, 6], GREEDY))
    runner = engine._engine._runner  # type: ignore[union-attr]
    step = runner.step

    def lost(*_: Any) -> Any:
        runner.step = step
        raise RuntimeError("device lost")

    runner.step = lost
    with pytest.raises(EngineError, match="RuntimeError"):
        await read(engine.submit([5, 6], GREEDY))
    assert "device lost" in caplog.text
    assert await read(engine.submit([5, 6], GREEDY)) == wanted


async def test_reading_before_the_start_knows_nothing(llama_folder: Path) -> None:
    engine = make(llama_folder)
    assert engine.reading().running_requests is None
    assert engine.capabilities.context_tokens is None


async def test_places_follow_the_memory_for_the_cache(llama_folder: Path) -> None:
    # Two layers, two heads, 8 numbers of 4 bytes, keys and values, 128 columns.
    each = 2 * 2 * 8 * 4 * 2 * 128
    engine = make(llama_folder, max_running=8, kv_cache_bytes=3 * each)
    await engine.start()
    assert engine.reading().capacity_requests == 3
    await engine.close()
    with pytest.raises(ConfigurationError, match=f"kv_cache_bytes to {each} or more"):
        await make(llama_folder, kv_cache_bytes=each - 1).start()


async def test_impossible_token_is_refused_and_harms_nobody(engine: TorchTokenEngine) -> None:
    with pytest.raises(RequestError, match="Token ids"):
        engine.submit([5, 10_000], GREEDY)
    assert len(await read(engine.submit([5], GREEDY))) == 6


async def test_decode_step_is_the_compilers_to_replace(llama_folder: Path) -> None:
    import torch

    calls: list[int] = []

    def compile_step(
        model: Any,
        model_id: str,
        *,
        examples: Any,
        dynamic_shapes: Any,
        recipe: Any,
        repeatable: bool,
        judge: Any,
        prepare: Any,
        buckets: Any,
    ) -> Any:
        made = examples()
        # Two rows or four, of one span of columns or all.
        sizes = {(len(tokens), mask.shape[-1]) for tokens, _, mask, *_ in buckets()}
        assert sizes == {(2, 64), (2, 128), (4, 64), (4, 128)}
        # What a child needs to make the same step of the same folder, and how to tell that it is right.
        assert (recipe.folder, recipe.places) == (str(llama_folder.resolve()), 4)
        assert repeatable
        assert callable(judge)
        # Builds compute with as many threads as steps do.
        assert callable(prepare)
        assert [tuple(example[0].shape) for example in made] == [(2, 1), (4, 1)]
        assert len(dynamic_shapes) == len(made[0])
        with torch.no_grad():
            assert model(*made[1]).shape == (4, 61)

        def compiled(*args: Any) -> Any:
            calls.append(len(args[0]))
            return model(*args)

        return compiled

    plain, served = make(llama_folder), make(llama_folder, max_running=4, compile_step=compile_step)
    await plain.start()
    await served.start()
    assert await read(served.submit([5, 6], GREEDY)) == await read(plain.submit([5, 6], GREEDY))
    assert calls == [2] * 5
    await plain.close()
    await served.close()


async def test_small_model_computes_on_one_thread_and_leaves_others_theirs(engine: TorchTokenEngine) -> None:
    import torch

    own = torch.get_num_threads()
    runner = engine._engine._runner  # type: ignore[union-attr]
    step, seen = runner.step, []

    def watched(*args: Any) -> Any:
        seen.append(torch.get_num_threads())
        return step(*args)

    runner.step = watched
    await read(engine.submit([5, 6], GREEDY))
    assert set(seen) == {1}
    assert torch.get_num_threads() == own


async def test_without_torch_the_extra_is_named(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "loadwise.torch_engine.loading", None)
    with pytest.raises(MissingExtraError, match=r"loadwise\[torch\]"):
        await make(llama_folder).start()
