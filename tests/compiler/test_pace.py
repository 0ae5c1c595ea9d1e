"""Verifying and measuring give way to requests: a call at a time, and rest in between."""

import threading
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from loadwise.compiler.attempt import Attempt
from loadwise.compiler.build import Build, BuildState, Stage
from loadwise.compiler.examples import Examples
from loadwise.compiler.pace import LOOK_EVERY_S, MOST_HERE, Pace
from loadwise.compiler.served import ServedModel
from loadwise.compiler.usage import Usage
from loadwise.errors import BuildDeclinedError
from loadwise.settings import OptimizationConfig
from loadwise.testing import FakeClock

from .conftest import Doubler, FakeBackend

LONGEST_GAP_S = 0.050
X = torch.arange(4.0)


class Machine:
    """A fake clock that knows which of its seconds were computed and which rested, in order."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.share = 0.25
        self.slices: list[float] = []
        self.rested_s = 0.0
        self._since_s = clock.monotonic_s()

    def rest(self, seconds: float) -> None:
        self.slices.append(self.clock.monotonic_s() - self._since_s)
        self.clock.advance(seconds)
        self.rested_s += seconds
        self._since_s = self.clock.monotonic_s()


@pytest.fixture
def machine(clock: FakeClock) -> Machine:
    return Machine(clock)


def attempted(machine: Machine, backend: FakeBackend, model: Doubler, **served_as: Any) -> Build:
    served = ServedModel(model, "m", Examples(lambda: [(X,)]), Usage(0.0), lambda _: None)
    for name, value in served_as.items():
        setattr(served, name, value)
    build = Build(mode="default", state=BuildState.BUILDING, stage=Stage.QUEUED)
    attempt = Attempt(machine.clock, lambda *_: machine.share, machine.rest)
    return attempt(backend, served, build, OptimizationConfig(), threading.Event())


def test_a_request_never_waits_for_more_than_one_call_of_what_is_judged(
    machine: Machine, backend: FakeBackend, model: Doubler
) -> None:
    build = attempted(machine, backend, model, judge=lambda step, precision, paced: whole_text(step, paced))
    assert build.state is BuildState.PROMOTED
    assert len(machine.slices) > 100
    assert max(machine.slices) < LONGEST_GAP_S


def whole_text(step: Any, paced: Any) -> dict[str, Any]:
    """A judge that has the build read a text of 72 tokens."""
    read = paced(step)
    for _ in range(72):
        read(X)
    return {"wrong": None}


def test_judging_computes_for_its_share_of_the_time_while_requests_are_answered(
    machine: Machine, backend: FakeBackend, model: Doubler
) -> None:
    assert attempted(machine, backend, model).state is BuildState.PROMOTED
    computed_s = sum(machine.slices)
    assert computed_s > 0.2
    assert computed_s / (computed_s + machine.rested_s) == pytest.approx(MOST_HERE)


def test_judging_rests_not_at_all_while_nothing_is_answered(
    machine: Machine, backend: FakeBackend, model: Doubler
) -> None:
    machine.share = 1.0
    assert attempted(machine, backend, model).state is BuildState.PROMOTED
    assert machine.rested_s == 0.0


def test_rest_does_not_count_as_time_of_the_original_or_the_build(
    machine: Machine, backend: FakeBackend, model: Doubler
) -> None:
    timing = attempted(machine, backend, model).timing
    assert timing is not None
    assert (timing.original_s, timing.compiled_s) == (pytest.approx(0.010), pytest.approx(0.004))


def test_rest_ends_when_the_last_request_has_been_answered(machine: Machine) -> None:
    def rest(seconds: float) -> None:
        machine.rest(seconds)
        machine.share = 1.0

    pace = Pace(machine.clock, lambda: machine.share, threading.Event(), rest)
    pace(machine.clock.advance)(1.0)
    assert machine.rested_s == pytest.approx(LOOK_EVERY_S)


def test_build_that_is_stopped_while_it_rests_is_as_if_it_had_not_been_tried(
    machine: Machine, backend: FakeBackend, model: Doubler
) -> None:
    stop = threading.Event()
    pace = Pace(machine.clock, lambda: machine.share, stop, lambda seconds: stop.set())
    with pytest.raises(BuildDeclinedError, match="was stopped"):
        pace(machine.clock.advance)(1.0)


def test_builds_are_made_as_the_model_computes(
    model: Doubler, backend: FakeBackend, clock: FakeClock
) -> None:
    from loadwise.compiler import ModelCompiler

    prepared: list[str] = []
    compiler = ModelCompiler(backend=backend, clock=clock)
    compiler.compile_model(
        model, "m", examples=lambda: [(X,)], prepare=lambda: prepared.append(threading.current_thread().name)
    )
    assert compiler.wait(30)
    compiler.close()
    assert prepared == ["model-compiler"]
