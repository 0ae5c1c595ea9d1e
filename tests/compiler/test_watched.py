"""A promoted build is held to its promise while it serves."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from loadwise.compiler import ModelCompiler, ServedModel
from loadwise.compiler.watched import COMPARE_EVERY, JUDGED_AFTER, RECENT_CALLS
from loadwise.testing import FakeClock

from .conftest import SLOWER_S, Doubler, FakeBackend

X = torch.arange(4.0)


def promoted(compiler: ModelCompiler, model: Doubler) -> ServedModel:
    served = compiler.compile_model(model, "m", examples=lambda: [(X,)])
    assert compiler.wait(30)
    assert compiler.compilation_stats["m"]["state"] == "promoted"
    return served


def call(served: Any, times: int, x: torch.Tensor = X) -> None:
    with torch.no_grad():
        for _ in range(times):
            assert torch.equal(served(x), x * 2)


def test_build_that_becomes_slower_than_the_original_is_taken_back_with_the_reason(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    served = promoted(compiler, model)
    backend.built[0].seconds = SLOWER_S
    call(served, COMPARE_EVERY * JUDGED_AFTER)
    stats = compiler.compilation_stats["m"]
    assert (stats["state"], stats["mode"]) == ("failed", None)
    assert "slower than the original (0.50" in stats["cause"]
    assert "force_recompile" in stats["remedy"]


def test_build_that_keeps_its_promise_goes_on_and_its_live_speed_is_told(
    compiler: ModelCompiler, model: Doubler
) -> None:
    served = promoted(compiler, model)
    call(served, COMPARE_EVERY * JUDGED_AFTER)
    stats = compiler.compilation_stats["m"]
    assert stats["state"] == "promoted"
    assert stats["watched"]["speedup"] == pytest.approx(2.5)
    assert (stats["watched"]["missed_calls"], stats["graph_breaks"]) == (0, [])


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_wrong_answer_to_a_live_call_is_replaced_and_the_build_taken_back_at_once(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler, factor: float
) -> None:
    served = promoted(compiler, model)
    call(served, COMPARE_EVERY - 1)
    backend.built[0].factor = factor
    call(served, 1)
    stats = compiler.compilation_stats["m"]
    assert (stats["state"], stats["mode"]) == ("failed", None)
    assert "answered a live call wrongly" in stats["cause"]


def test_shape_never_seen_before_is_answered_by_the_original_and_named(
    compiler: ModelCompiler, model: Doubler
) -> None:
    served = promoted(compiler, model)
    call(served, 1, torch.ones(3, 5))
    stats = compiler.compilation_stats["m"]
    assert stats["state"] == "promoted"
    assert (stats["watched"]["missed_calls"], stats["watched"]["missed"]) == (1, {"3x5": 1})


def test_storm_of_shapes_that_a_build_was_not_made_for_takes_it_back(
    compiler: ModelCompiler, model: Doubler
) -> None:
    served = promoted(compiler, model)
    call(served, RECENT_CALLS, torch.ones(2, 2))
    stats = compiler.compilation_stats["m"]
    assert (stats["state"], stats["mode"]) == ("failed", None)
    assert "shapes that it was not made for (2x2)" in stats["cause"]


def test_after_a_storm_the_next_build_is_made_for_the_calls_that_come_now(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    served = compiler.compile_model(model, "m")
    call(served, 1)
    assert compiler.wait(30)
    call(served, RECENT_CALLS, torch.ones(2, 2))
    assert compiler.compilation_stats["m"]["state"] == "failed"
    assert compiler.force_recompile("m") == ["m"]
    assert compiler.wait(30)
    assert [tuple(request.examples[0][0][0].shape) for request in backend.requests] == [(4,), (2, 2)]


def test_call_with_large_arguments_is_not_copied_to_be_compared(
    compiler: ModelCompiler, model: Doubler, monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    monkeypatch.setattr("loadwise.compiler.watched.COPY_BYTES", 1)
    served = promoted(compiler, model)
    calls = model.calls
    call(served, COMPARE_EVERY)
    assert model.calls == calls
    assert compiler.compilation_stats["m"]["watched"]["compared"] == 0
