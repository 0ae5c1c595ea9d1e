"""A GPU that serves never builds; a drained one may, until it is called back."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from loadwise.compiler import ModelCompiler
from loadwise.compiler.workshop import Workshop
from loadwise.ports import BuildRequest
from loadwise.settings import OptimizationConfig
from loadwise.testing import FakeClock

from .conftest import Doubler, FakeBackend

X = torch.arange(4.0)


class Keeping(Workshop):
    """Says that a build is kept, which the backend then opens, or says that it cannot."""

    keeps = True

    def keeps_build(self, request: BuildRequest) -> bool:
        return True


class OnGpu(Doubler):
    """Says that its parameters are on a GPU, which this machine need not have."""

    def __init__(self, clock: FakeClock, number: int = 0) -> None:
        super().__init__(clock)
        self.device = torch.device("cuda", number)

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        return iter([SimpleNamespace(device=self.device)])


class Drains:
    """Which models answer no requests, as a fleet would say."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)

    def __call__(self, model_id: str) -> bool:
        return model_id in self.names


@pytest.fixture
def idle(compiler: ModelCompiler) -> Drains:
    compiler.drained = drains = Drains()
    return drains


def give(compiler: ModelCompiler, model: OnGpu, name: str) -> None:
    compiler.compile_model(model.eval(), name, examples=lambda: [(X,)])


def test_model_on_a_gpu_that_serves_is_refused_with_what_to_do(
    compiler: ModelCompiler, backend: FakeBackend, clock: FakeClock, idle: Drains
) -> None:
    give(compiler, OnGpu(clock), "m")
    assert compiler.force_recompile("m") == []
    stats = compiler.compilation_stats["m"]
    assert "GPU that serves" in stats["cause"]
    assert "loadwise compile" in stats["remedy"]
    assert "drain every member" in stats["remedy"]
    assert backend.requests == []


def test_drained_model_is_built_on_its_gpu(compiler: ModelCompiler, clock: FakeClock, idle: Drains) -> None:
    give(compiler, OnGpu(clock), "m")
    idle.names.add("m")
    assert compiler.force_recompile("m") == ["m"]
    assert compiler.wait(30)
    assert compiler.compilation_stats["m"]["state"] == "promoted"


def test_drained_model_waits_for_its_neighbour_on_the_same_gpu_only(
    compiler: ModelCompiler, clock: FakeClock, idle: Drains
) -> None:
    idle.names.add("m")
    give(compiler, OnGpu(clock, 1), "elsewhere")
    give(compiler, OnGpu(clock, 0), "m")
    assert compiler.wait(30)
    assert compiler.compilation_stats["m"]["state"] == "promoted"
    give(compiler, OnGpu(clock, 0), "neighbour")
    assert compiler.force_recompile("m") == []


def test_build_ends_without_a_result_when_its_model_is_called_back(
    compiler: ModelCompiler, backend: FakeBackend, clock: FakeClock, idle: Drains
) -> None:
    idle.names.add("m")
    backend.hold.clear()
    give(compiler, OnGpu(clock), "m")
    assert backend.began.wait(30)
    idle.names.clear()
    # As the watch over the child does, all the time.
    backend.requests[0].share()
    assert backend.requests[0].stop.is_set()
    backend.hold.set()
    assert compiler.wait(30)
    stats = compiler.compilation_stats["m"]
    assert (stats["state"], stats["mode"]) == ("original", None)
    assert "was stopped" in stats["cause"]


def test_kept_build_is_opened_beside_requests_on_its_gpu(backend: FakeBackend, clock: FakeClock) -> None:
    compiler = ModelCompiler(OptimizationConfig(), workshop=Keeping([backend]), clock=clock, automatic=False)
    give(compiler, OnGpu(clock), "m")
    assert compiler.wait(30)
    stats = compiler.compilation_stats["m"]
    compiler.close()
    assert (stats["state"], stats["mode"]) == ("promoted", "default")
    assert all(request.kept_only and not request.stop.is_set() for request in backend.requests)
