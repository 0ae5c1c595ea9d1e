"""Small weights make a variant: near the model, the same in every process, and built like any other."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("torchao", reason="unavailable: torchao")

from loadwise.compiler import ModelCompiler
from loadwise.compiler.parameters import ParameterKey, parameters_digest
from loadwise.engines.rendering import RenderedEngine
from loadwise.engines.torch import TorchTokenEngine
from loadwise.errors import ConfigurationError
from loadwise.ports import Clock, SamplingParams
from loadwise.testing import FakeClock
from loadwise.testing.engine_contract import EngineContract, SamplingContract
from loadwise.torch_engine.forcing import Forcing
from loadwise.torch_engine.loading import load
from loadwise.torch_engine.recipe import StepRecipe
from loadwise.torch_engine.runner import Runner


def recipe(folder: Path, weights: str | None = "int8") -> StepRecipe:
    return StepRecipe(str(folder), "cpu", "float32", places=4, context_tokens=96, weights=weights)


def test_small_weights_take_less_room_and_are_near_the_model(llama_folder: Path) -> None:
    plain, small = load(llama_folder), load(llama_folder, weights="int8")
    sizes = [
        sum(tensor.numel() * tensor.element_size() for tensor in loaded.model.parameters())
        for loaded in (plain, small)
    ]
    assert sizes[1] < sizes[0]
    runners = [Runner(loaded, 4, loaded.context_tokens) for loaded in (plain, small)]
    found = Forcing(plain, runners[0].original, 4).judge(runners[1].original, "float32")
    assert found.finite
    assert 0.0 < abs(found.loss_off) < 0.1


def test_another_process_makes_the_very_same_small_weights(llama_folder: Path) -> None:
    made = [parameters_digest(recipe(llama_folder).make().module) for _ in range(2)]
    assert made[0] == made[1]
    assert made[0] != parameters_digest(recipe(llama_folder, None).make().module)


def test_key_of_small_weights_holds_until_they_change(llama_folder: Path) -> None:
    model = load(llama_folder, weights="int8").model
    key = ParameterKey(model)
    assert key.holds()
    with torch.no_grad():
        next(parameter for parameter in model.parameters() if parameter.dtype is torch.int8).zero_()
    assert not key.holds()


def test_unknown_weights_are_refused_with_the_known_ones(llama_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Unknown weights 'int3'\. Choose int8"):
        load(llama_folder, weights="int3")


class TestSmallWeights(EngineContract, SamplingContract):
    @pytest.fixture
    async def engine(self, served_folder: Path, clock: Clock) -> AsyncIterator[RenderedEngine]:
        inner = TorchTokenEngine(served_folder, clock=clock, max_running=4, weights="int8")
        engine = RenderedEngine(inner, served_folder, "small", "small-0", clock)
        await engine.start()
        yield engine
        await engine.close()


@pytest.fixture
def clock() -> Clock:
    return FakeClock()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("g++") is None, reason="unavailable: g++")
async def test_step_with_small_weights_is_built_and_answers_as_uncompiled(shallow_folder: Path) -> None:
    import asyncio

    from loadwise.clock import SystemClock

    compiler = ModelCompiler(automatic=False)
    engine = TorchTokenEngine(
        shallow_folder,
        clock=SystemClock(),
        model_id="m",
        max_running=4,
        weights="int8",
        compile_step=compiler.compile_model,
    )
    await engine.start()
    assert compiler.build("m")
    assert await asyncio.to_thread(compiler.wait, 1000)
    stats = compiler.compilation_stats["m"]
    stream = engine.submit([5, 6, 7], SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True))
    tokens = [event.token_ids async for event in stream]
    await engine.close()
    compiler.close()
    assert len(tokens) == 8
    # Faster or not, what was built answers as what it was built from.
    assert stats["agreement"]["wrong"] is None
