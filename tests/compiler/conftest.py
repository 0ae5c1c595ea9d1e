"""Modules whose cost is a clock's, and a backend that builds whatever a test wants."""

import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

torch = pytest.importorskip("torch")

from loadwise.compiler import ModelCompiler
from loadwise.ports import Availability, BuildRequest, Built, Form
from loadwise.settings import OptimizationConfig
from loadwise.testing import FakeClock

ORIGINAL_S, FASTER_S, SLOWER_S = 0.010, 0.004, 0.020


class Doubler(torch.nn.Module):
    """Twice its input times a weight of 1; each call takes `ORIGINAL_S` of the fake clock."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.clock = clock
        self.calls = 0

    def forward(self, x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        self.calls += 1
        self.clock.advance(ORIGINAL_S)
        return x * scale * self.weight


class Build:
    """What the fake backend returns; counts its calls."""

    def __init__(self, clock: FakeClock, model: Any, seconds: float, factor: float = 1.0) -> None:
        self.clock, self.seconds, self.factor = clock, seconds, factor
        self.weight = model.weight.detach().clone()
        self.calls = 0

    def __call__(self, x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        self.calls += 1
        self.clock.advance(self.seconds)
        return x * scale * self.weight * self.factor


class FakeBackend:
    """Builds at once, with a recipe; `hold` keeps builds waiting until it is set."""

    name = "fake"
    forms: ClassVar = {mode: Form() for mode in ("default", "reduce-overhead", "max-autotune")}

    def __init__(self, recipe: Callable[[BuildRequest], Any]) -> None:
        self.recipe = recipe
        self.requests: list[BuildRequest] = []
        self.built: list[Any] = []
        self.began = threading.Event()
        self.hold = threading.Event()
        self.hold.set()
        self.missing = ""

    def available(self) -> Availability:
        return Availability(ok=not self.missing, reason=self.missing)

    def build(self, request: BuildRequest) -> Built:
        self.requests.append(request)
        self.began.set()
        self.hold.wait(30)
        call = self.recipe(request)
        self.built.append(call)
        return Built(call=call, accepts=lambda args, kwargs: args[0].dim() == 1)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def model(clock: FakeClock) -> Doubler:
    return Doubler(clock).eval()


@pytest.fixture
def backend(clock: FakeClock) -> FakeBackend:
    return FakeBackend(lambda request: Build(clock, request.model, FASTER_S))


@pytest.fixture
def compiler(backend: FakeBackend, clock: FakeClock) -> Iterator[ModelCompiler]:
    compiler = ModelCompiler(OptimizationConfig(), backend=backend, clock=clock)
    yield compiler
    backend.hold.set()
    compiler.close()
