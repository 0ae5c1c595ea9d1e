"""The decode step, compiled for real by ModelCompiler and promoted between steps."""

import asyncio
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from loadwise.clock import SystemClock
from loadwise.compiler import ModelCompiler
from loadwise.compiler.backends.accepts import Acceptance
from loadwise.compiler.backends.export import export
from loadwise.engines.torch import TorchTokenEngine
from loadwise.ports import BuildRequest, SamplingParams
from loadwise.settings import OptimizationConfig
from loadwise.torch_engine.loading import load
from loadwise.torch_engine.runner import Runner
from loadwise.torch_engine.scheduler import Plan
from loadwise.torch_engine.sequence import Sampling, Sequence


@pytest.fixture(autouse=True)
def quiet_export() -> Iterator[None]:
    """Exporting warns about torch's own use of its deprecated parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_decode_step_exports_with_rows_and_span_that_vary(llama_folder: Path) -> None:
    loaded = load(llama_folder)
    runner = Runner(loaded, 4, loaded.context_tokens)
    request = BuildRequest(
        model=runner.original,
        model_id="m",
        mode="default",
        examples=[(example, {}) for example in runner.decode_examples()],
        dynamic_shapes=runner.decode_dynamic_shapes(),
    )
    takes = Acceptance.of(export(request), request.examples[0]).takes
    assert all(takes(args, kwargs) for args, kwargs in request.examples)
    for rows, length in ((2, 5), (3, 70), (4, 95)):
        decoding = [
            Sequence(
                sequence_id=row,
                prompt=(5,) * length,
                sampling=Sampling(max_tokens=1),
                arrived_s=0.0,
                output=[5],
                place=row,
                computed=length - 1,
            )
            for row in range(rows)
        ]
        seen: list[tuple[Any, ...]] = []

        def watched(*args: Any, seen: list[tuple[Any, ...]] = seen) -> Any:
            seen.append(args)
            return runner.original(*args)

        runner.step = watched
        runner.run(Plan(decodes=decoding))
        assert takes(seen[0], {})


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("g++") is None, reason="unavailable: g++")
async def test_promoted_step_answers_token_for_token_as_the_original(shallow_folder: Path) -> None:
    compiler = ModelCompiler(OptimizationConfig(), automatic=False)
    plain = TorchTokenEngine(shallow_folder, clock=SystemClock(), max_running=4)
    engine = TorchTokenEngine(
        shallow_folder, clock=SystemClock(), model_id="m", max_running=4, compile_step=compiler.compile_model
    )
    await plain.start()
    await engine.start()
    assert compiler.build("m")
    assert await asyncio.to_thread(compiler.wait, 1000)
    stats = compiler.compilation_stats["m"]
    assert stats["state"] == "promoted", stats
    assert stats["speedup"] > 1
    for count in (1, 3, 4):
        answers = []
        for each in (plain, engine):
            streams = [
                each.submit(
                    [5 + n, 6, 7], SamplingParams(max_tokens=60 + n, temperature=0.0, ignore_eos=True)
                )
                for n in range(count)
            ]
            answers.append([[e.token_ids async for e in stream] for stream in streams])
        assert answers[0] == answers[1]
    await plain.close()
    await engine.close()
    compiler.close()
