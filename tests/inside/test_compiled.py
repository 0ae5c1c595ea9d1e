"""What an engine's workers compiled, asked for over the engine's own way of asking them."""

from __future__ import annotations

import sys
from collections import Counter
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from loadwise.engines.inside import compiled

NOTHING = {"compile_seconds": None, "graphs_loaded": None, "graphs_compiled": None, "cache_hit": None}


class Engine:
    """An engine that asks its workers by a method's name, as vLLM's and Aphrodite's clients do."""

    def __init__(self, *workers: Any) -> None:
        self.workers = workers

    async def collective_rpc(self, method: str) -> list[Any]:
        return [getattr(worker, method)() for worker in self.workers]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Modules of an engine named `fake`, and the class of its workers."""
    worker_base = type("WorkerBase", (), {"compilation_config": SimpleNamespace(compilation_time=0.0)})
    found = SimpleNamespace(
        base=worker_base,
        counter=SimpleNamespace(num_compiled_artifacts_loaded=0, num_compiled_artifacts_saved=0),
        inductor=Counter(),
        seconds={"total_wall_time": 0.0},
    )
    modules = {
        "fake": {}, "fake.v1": {}, "fake.v1.worker": {},
        "fake.v1.worker.worker_base": {"WorkerBase": worker_base},
        "fake.compilation.counter": {"compilation_counter": found.counter},
        "torch._dynamo.utils": {
            "counters": {"inductor": found.inductor}, "calculate_time_spent": lambda: found.seconds
        },
    }  # fmt: skip
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    compiled.install("fake")
    return found


async def test_a_first_start_compiles_and_a_second_finds_it_in_the_cache(engine: Any) -> None:
    engine.seconds["total_wall_time"] = 21.5
    engine.inductor["fxgraph_cache_miss"] = 3
    first = await compiled.asked("fake", Engine(engine.base()))
    assert first == {"compile_seconds": 21.5, "graphs_loaded": 0, "graphs_compiled": 3, "cache_hit": False}
    engine.inductor.clear()
    engine.inductor["fxgraph_cache_hit"] = 3
    second = await compiled.asked("fake", Engine(engine.base()))
    assert (second["graphs_loaded"], second["cache_hit"]) == (3, True)


async def test_where_the_engine_counts_its_own_graphs_and_seconds_these_are_told(engine: Any) -> None:
    engine.base.compilation_config = SimpleNamespace(compilation_time=4.25)
    engine.seconds["total_wall_time"] = 9.0
    engine.counter.num_compiled_artifacts_loaded = 2
    engine.inductor["fxgraph_cache_miss"] = 7
    found = await compiled.asked("fake", Engine(engine.base(), engine.base()))
    assert found == {"compile_seconds": 4.25, "graphs_loaded": 4, "graphs_compiled": 0, "cache_hit": True}


async def test_an_engine_that_compiles_nothing_says_nothing(engine: Any) -> None:
    assert await compiled.asked("fake", Engine(engine.base())) == NOTHING


async def test_a_worker_of_another_form_answers_its_engine_all_the_same(engine: Any) -> None:
    del engine.base.compilation_config
    worker = engine.base()
    assert getattr(worker, compiled.METHOD)() == {}
    assert await compiled.asked("fake", Engine(worker)) == NOTHING


async def test_who_cannot_be_asked_is_not_asked(engine: Any) -> None:
    assert await compiled.asked("fake", SimpleNamespace()) == {}
    # No worker has the method.
    assert await compiled.asked("fake", Engine(object())) == {}
    compiled.install("no_such_engine")
    assert await compiled.asked("no_such_engine", Engine(engine.base())) == {}
