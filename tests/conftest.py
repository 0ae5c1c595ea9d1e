"""A small module, a build backend, an engine client and a host that library tests share."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from loadwise.decision.facts import EngineReading, HostReading
from loadwise.errors import BuildError
from loadwise.ports import Availability, BuildRequest, Built, Form
from loadwise.testing import FakeClock


class Halving(torch.nn.Module):
    """Multiplies by a matrix, then halves and doubles many times: the same answer, slowly."""

    def __init__(self, size: int = 8, rounds: int = 400) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(size, size)
        self.rounds = rounds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        for _ in range(self.rounds):
            x = (x * 0.5) * 2.0
        return x


class FakeBackend:
    """Builds of `Halving` leave out what changes nothing; `fault` and `wrong` make them fail."""

    name = "fake"
    forms: ClassVar = {mode: Form() for mode in ("default", "reduce-overhead", "max-autotune")}

    def __init__(self) -> None:
        self.fault: BuildError | None = None
        self.wrong = False
        self.builds: list[tuple[str, str]] = []

    def available(self) -> Availability:
        return Availability(ok=True)

    def build(self, request: BuildRequest) -> Built:
        self.builds.append((request.model_id, request.mode))
        if self.fault is not None:
            raise self.fault
        linear, offset = request.model.linear, 1.0 if self.wrong else 0.0
        return Built(call=lambda x: linear(x) + offset, accepts=lambda args, kwargs: len(args) == 1)


class Engine:
    """An engine client that says how busy it is."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.running, self.waiting = 0, 0

    def reading(self) -> EngineReading:
        return EngineReading(
            replica_id="engine",
            read_s=self._clock.monotonic_s(),
            running_requests=self.running,
            waiting_requests=self.waiting,
            capacity_requests=8,
            kv_cache_usage_fraction=self.running / 10,
        )


class Host:
    """A machine as busy as the test says."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.cpu = 10.0

    def read(self) -> HostReading:
        return HostReading(
            read_s=self._clock.monotonic_s(), cpu_usage_percent=self.cpu, memory_usage_percent=40.0
        )


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def engine(clock: FakeClock) -> Engine:
    return Engine(clock)


@pytest.fixture
def host(clock: FakeClock) -> Host:
    return Host(clock)


@pytest.fixture
def model() -> Halving:
    torch.manual_seed(3)
    return Halving().eval()


@pytest.fixture
def batch() -> Any:
    return torch.randn(4, 8)


@pytest.fixture(scope="session")
def xss() -> tuple[str, ...]:
    """Texts that would run a script in a page that did not escape them; each sets `window.broken`."""
    return (
        "<script>window.broken=1</script>",
        "<img src=x onerror=window.broken=1>",
        '"><svg onload=window.broken=1>',
        "'><iframe srcdoc='<script>parent.broken=1</script>'>",
        "</style><script>window.broken=1</script>",
        "</title></textarea><script>window.broken=1</script>",
        "javascript:window.broken=1",
        "`${window.broken=1}`",
        "{{constructor.constructor('window.broken=1')()}}",
        "<!--<img src='--><img src=x onerror=window.broken=1>'",
        "&lt;img src=x onerror=window.broken=1&gt;",
        "x' onmouseover='window.broken=1",
        "<a href=javascript:window.broken=1>a</a>",
        "\u2028<script>window.broken=1</script>",
        "[a](javascript:window.broken=1) | a | `",
    )
