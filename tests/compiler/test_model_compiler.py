"""The original serves until a build is equal and faster, and again when it no longer is."""

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from loadwise.compiler import ModelCompiler, ServedModel
from loadwise.decision.build_facts import BuildStatus
from loadwise.errors import BuildDeclinedError, BuildError, ConfigurationError, UnknownNameError
from loadwise.ports import BuildRequest
from loadwise.settings import OptimizationConfig
from loadwise.testing import FakeClock

from .conftest import FASTER_S, ORIGINAL_S, SLOWER_S, Build, Doubler, FakeBackend

X = torch.arange(4.0)


def call(served: Any, x: torch.Tensor = X) -> torch.Tensor:
    with torch.no_grad():
        return served(x)


def promoted(compiler: ModelCompiler, model: Doubler) -> ServedModel:
    served = compiler.compile_model(model, "m")
    call(served)
    assert compiler.wait(30)
    assert compiler.compilation_stats["m"]["state"] == "promoted"
    return served


def test_original_serves_while_the_build_is_made(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    backend.hold.clear()
    served = compiler.compile_model(model, "m")
    assert torch.equal(call(served), X * 2)
    assert model.calls == 1
    assert compiler.compilation_stats["m"]["state"] == "building"
    assert torch.equal(call(served), X * 2)
    assert model.calls == 2


def test_equal_and_faster_build_serves_with_its_times_in_the_stats(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    served = promoted(compiler, model)
    before = model.calls, backend.built[0].calls
    assert torch.equal(call(served), X * 2)
    assert (model.calls, backend.built[0].calls) == (before[0], before[1] + 1)
    stats = compiler.compilation_stats["m"]
    assert stats["mode"] == "default"
    assert stats["original_ms"] == pytest.approx(ORIGINAL_S * 1000)
    assert stats["compiled_ms"] == pytest.approx(FASTER_S * 1000)
    assert stats["speedup"] == pytest.approx(2.5)


@pytest.mark.parametrize(("factor", "why"), [(1.01, "differs by 0.01"), (float("nan"), "NaN")])
def test_wrong_build_never_serves_and_the_stats_say_what_differs(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler, clock: FakeClock, factor: float, why: str
) -> None:
    backend.recipe = lambda request: Build(clock, request.model, FASTER_S, factor=factor)
    served = compiler.compile_model(model, "m")
    call(served)
    assert compiler.wait(30)
    stats = compiler.compilation_stats["m"]
    assert (stats["state"], stats["mode"]) == ("failed", None)
    assert why in stats["cause"]
    assert stats["remedy"]
    calls = model.calls
    assert torch.equal(call(served), X * 2)
    assert model.calls == calls + 1


def test_slower_build_never_serves(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler, clock: FakeClock
) -> None:
    backend.recipe = lambda request: Build(clock, request.model, SLOWER_S)
    call(compiler.compile_model(model, "m"))
    assert compiler.wait(30)
    stats = compiler.compilation_stats["m"]
    assert stats["state"] == "declined"
    assert "not faster (20 ms against 10 ms)" in stats["cause"]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (BuildError("took too long", remedy="raise it"), "failed"),
        (BuildDeclinedError("uses chance"), "declined"),
        (RuntimeError("segment 7"), "failed"),
    ],
)
def test_build_that_raises_leaves_the_original_serving_with_the_reason(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler, error: Exception, state: str
) -> None:
    def fail(request: Any) -> Any:
        raise error

    backend.recipe = fail
    served = compiler.compile_model(model, "m")
    call(served)
    assert compiler.wait(30)
    stats = compiler.compilation_stats["m"]
    assert stats["state"] == state
    assert str(error) in stats["cause"]
    assert torch.equal(call(served), X * 2)


def change_in_place(model: Doubler) -> None:
    with torch.no_grad():
        model.weight.mul_(3.0)


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        lambda model: model.load_state_dict({"weight": torch.full((1,), 3.0)}),
        lambda model: model.load_state_dict({"weight": torch.full((1,), 3.0)}, assign=True),
        lambda model: setattr(model.weight, "data", torch.full((1,), 3.0)),
        lambda model: setattr(model, "weight", torch.nn.Parameter(torch.full((1,), 3.0))),
    ],
    ids=["in place", "load_state_dict", "assigned", "data", "replaced"],
)
def test_changed_parameters_are_served_by_the_original_at_once(
    compiler: ModelCompiler, model: Doubler, change: Any
) -> None:
    served = promoted(compiler, model)
    change(model)
    assert torch.equal(call(served), X * 6)
    stats = compiler.compilation_stats["m"]
    assert (stats["state"], stats["mode"]) == ("original", None)
    assert "parameters changed" in stats["cause"]
    assert compiler.force_recompile("m") == ["m"]
    assert compiler.wait(30)
    assert compiler.compilation_stats["m"]["state"] == "promoted"
    assert torch.equal(call(served), X * 6)


def test_training_mode_is_served_by_the_original_and_evaluation_by_the_build_again(
    compiler: ModelCompiler, model: Doubler
) -> None:
    served = promoted(compiler, model)
    model.train()
    calls = model.calls
    call(served)
    assert model.calls == calls + 1
    model.eval()
    call(served)
    assert model.calls == calls + 1


def test_model_in_training_mode_is_not_built(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    model.train()
    call(compiler.compile_model(model, "m"))
    assert compiler.wait(30)
    stats = compiler.compilation_stats["m"]
    assert (stats["state"], stats["cause"]) == ("original", "the model is in training mode")
    assert backend.requests == []


def test_build_that_fails_while_serving_is_retired_and_the_original_answers(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    served = promoted(compiler, model)
    backend.built[0].weight = "broken"
    assert torch.equal(call(served), X * 2)
    stats = compiler.compilation_stats["m"]
    assert (stats["state"], stats["mode"]) == ("failed", None)
    assert "TypeError while serving" in stats["cause"]
    calls = backend.built[0].calls
    call(served)
    assert backend.built[0].calls == calls


def test_one_build_is_queued_however_often_it_is_asked_for(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    promoted(compiler, model)
    backend.hold.clear()
    assert compiler.force_recompile("m") == ["m"]
    assert compiler.force_recompile("m") == ["m"]
    backend.hold.set()
    assert compiler.wait(30)
    assert len(backend.requests) == 2


def test_objects_of_the_callers_are_never_kept(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    class Cache(list[float]):
        """Something that a call could write to."""

    model.forward = lambda x, cache: x * cache[0]  # type: ignore[method-assign]
    served = compiler.compile_model(model, "m")
    assert torch.equal(served(X, Cache([2.0])), X * 2)
    assert not compiler.build("m")
    assert "can be copied" in compiler.compilation_stats["m"]["cause"]
    assert backend.requests == []


def test_call_that_the_build_cannot_take_goes_to_the_original(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    served = promoted(compiler, model)
    calls = backend.built[0].calls
    assert torch.equal(call(served, torch.ones(2, 2)), torch.full((2, 2), 2.0))
    assert backend.built[0].calls == calls


def test_gradients_of_an_input_come_from_the_original(compiler: ModelCompiler, model: Doubler) -> None:
    served = promoted(compiler, model)
    x = X.clone().requires_grad_()
    served(x).sum().backward()
    assert torch.equal(x.grad, torch.full((4,), 2.0))


def test_high_load_is_served_by_max_autotune_and_a_missing_mode_by_the_best_built(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    promoted(compiler, model)
    compiler.serve_mode("max-autotune")
    assert compiler.compilation_stats["m"]["mode"] == "default"
    assert compiler.build("m", "max-autotune")
    assert compiler.wait(30)
    assert compiler.compilation_stats["m"]["mode"] == "max-autotune"
    compiler.serve_mode("default")
    assert compiler.compilation_stats["m"]["mode"] == "default"
    assert [(request.mode, request.dynamic) for request in backend.requests] == [
        ("default", True),
        ("max-autotune", False),
    ]


def test_failed_rebuild_keeps_the_old_build_serving(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler, clock: FakeClock
) -> None:
    served = promoted(compiler, model)
    backend.recipe = lambda request: Build(clock, request.model, FASTER_S, factor=2.0)
    assert compiler.force_recompile() == ["m"]
    assert compiler.wait(30)
    stats = compiler.compilation_stats["m"]
    assert (stats["state"], stats["failures"]) == ("promoted", 1)
    assert "wrong" in stats["cause"]
    calls = backend.built[0].calls
    call(served)
    assert backend.built[0].calls == calls + 1


def test_graph_break_is_told_with_its_place(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    def broken(_request: BuildRequest) -> Build:
        raise BuildDeclinedError("cannot be exported", graph_break="forward (model.py:7): if x > 0:")

    backend.recipe = broken
    call(compiler.compile_model(model, "m"))
    assert compiler.wait(30)
    assert compiler.compilation_stats["m"]["graph_breaks"] == ["forward (model.py:7): if x > 0:"]


@pytest.mark.parametrize(("limit", "state"), [(8.0, "promoted"), (3.0, "failed")])
def test_build_answers_a_call_of_every_size_that_it_will_serve_before_it_serves(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler, clock: FakeClock, limit: float, state: str
) -> None:
    class Bounded(Build):
        """Wrong for calls of more numbers than `limit`."""

        def __call__(self, x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
            return super().__call__(x, scale) + (0.0 if len(x) <= limit else 1.0)

    backend.recipe = lambda request: Bounded(clock, request.model, FASTER_S)
    sizes = [(torch.arange(float(size)),) for size in (2, 4, 8)]
    compiler.compile_model(model, "m", examples=lambda: sizes[:1], buckets=lambda: sizes)
    assert compiler.wait(30)
    stats = compiler.compilation_stats["m"]
    assert stats["state"] == state
    assert state == "promoted" or "for a call of sizes 4 (" in stats["cause"]


class Writer(Doubler):
    """Twice what lies in a cache, once its input is written there."""

    def forward(self, x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        cache[: len(x)] = x
        return super().forward(cache[: len(x)])


@pytest.mark.parametrize(("limit", "state"), [(8, "promoted"), (3, "failed")])
def test_build_that_leaves_a_cache_as_it_was_does_not_answer_from_what_the_original_wrote(
    compiler: ModelCompiler, backend: FakeBackend, clock: FakeClock, limit: int, state: str
) -> None:
    class Forgetful(Build):
        """Writes calls of up to `limit` numbers only."""

        def __call__(self, x: torch.Tensor, cache: Any = None) -> torch.Tensor:
            cache[: len(x)] = x if len(x) <= limit else cache[: len(x)]
            return super().__call__(cache[: len(x)])

    backend.recipe = lambda request: Forgetful(clock, request.model, FASTER_S)
    sizes = [(torch.arange(float(size)), torch.zeros(8)) for size in (2, 8)]
    compiler.compile_model(Writer(clock).eval(), "m", examples=lambda: sizes[:1], buckets=lambda: sizes)
    assert compiler.wait(30)
    assert compiler.compilation_stats["m"]["state"] == state


def test_progress_of_a_build_tells_what_it_took_so_far_and_what_it_usually_takes(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    promoted(compiler, model)
    backend.hold.clear()
    backend.began.clear()
    compiler.force_recompile("m")
    assert backend.began.wait(30)
    backend.requests[-1].progress(7.5)
    (going,) = compiler.in_progress()
    assert (going["stage"], going["computed_s"]) == ("making", 7.5)
    assert going["usual_s"] == compiler.compilation_stats["m"]["build_time_s"]
    compiler.build("m", "max-autotune")
    assert [found["usual_s"] for found in compiler.in_progress()][1] == 600.0


def test_what_is_no_torch_module_is_served_unchanged(compiler: ModelCompiler) -> None:
    thing = SimpleNamespace(answer=42)
    assert compiler.compile_model(thing, "thing") is thing
    assert compiler.get_compiled_model("thing") is thing
    stats = compiler.compilation_stats["thing"]
    assert (stats["state"], stats["cause"]) == ("declined", "not a torch module")
    assert compiler.force_recompile("thing") == []


def test_get_compiled_model_returns_the_servable_or_none(compiler: ModelCompiler, model: Doubler) -> None:
    served = compiler.compile_model(model, "model_id")
    assert compiler.get_compiled_model("model_id") is served
    assert compiler.get_compiled_model("other") is None
    assert compiler.compile_model(model, "model_id") is served


def test_served_model_shows_the_attributes_of_its_model(compiler: ModelCompiler, model: Doubler) -> None:
    served = compiler.compile_model(model, "m")
    assert served.weight is model.weight
    assert [name for name, _ in served.named_parameters()] == ["weight"]
    with pytest.raises(AttributeError):
        served.nothing_of_the_kind  # noqa: B018 - the access is the test


def test_recompiling_an_unknown_name_or_mode_is_refused(compiler: ModelCompiler, model: Doubler) -> None:
    compiler.compile_model(model, "m")
    with pytest.raises(UnknownNameError, match="other"):
        compiler.force_recompile("other")
    with pytest.raises(ConfigurationError, match="fastest"):
        compiler.build("m", "fastest")


@pytest.mark.parametrize(
    ("config", "missing", "cause"),
    [
        (OptimizationConfig(enable_torch_compile=False), "", "switched off"),
        (OptimizationConfig(), "g++", "unavailable: g++"),
    ],
)
def test_without_compilation_the_original_serves_and_the_stats_say_why(
    backend: FakeBackend,
    model: Doubler,
    clock: FakeClock,
    config: OptimizationConfig,
    missing: str,
    cause: str,
) -> None:
    backend.missing = missing
    compiler = ModelCompiler(config, backend=backend, clock=clock)
    assert torch.equal(call(compiler.compile_model(model, "m")), X * 2)
    stats = compiler.compilation_stats["m"]
    assert (stats["state"], stats["cause"]) == ("original", cause)
    assert backend.requests == []


def test_build_asked_for_before_any_call_says_that_shapes_are_missing(
    compiler: ModelCompiler, model: Doubler
) -> None:
    compiler.compile_model(model, "m")
    assert not compiler.build("m")
    assert "no call seen yet" in compiler.compilation_stats["m"]["cause"]


def test_given_examples_are_built_for_without_a_call(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    compiler.compile_model(model, "m", examples=lambda: [(X,)], dynamic_shapes="as torch.export has it")
    assert compiler.wait(30)
    assert compiler.compilation_stats["m"]["state"] == "promoted"
    assert backend.requests[0].dynamic_shapes == "as torch.export has it"


def test_builds_that_were_stopped_say_so_and_may_be_asked_for_again(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    served = promoted(compiler, model)
    backend.hold.clear()
    compiler.build("m", "default")
    compiler.build("m", "max-autotune")
    compiler.stop_builds()
    backend.hold.set()
    assert compiler.wait(30)
    stopped = served.builds["max-autotune"]
    assert (stopped.state, stopped.cause, stopped.failures) == ("original", "The build was stopped.", 0)
    assert served.builds["default"].built is not None
    assert [fact.mode for fact in compiler.facts()] == ["default"]
    compiler.build("m", "max-autotune")
    assert compiler.wait(30)
    assert served.builds["max-autotune"].state == "promoted"


def test_stopped_build_does_not_hide_why_another_was_declined(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    def decline(_request: BuildRequest) -> Build:
        raise BuildDeclinedError("The build is not faster.")

    recipe, backend.recipe = backend.recipe, decline
    served = compiler.compile_model(model, "m")
    call(served)
    assert compiler.wait(30)
    backend.recipe = recipe
    backend.hold.clear()
    compiler.build("m", "max-autotune")
    compiler.stop_builds()
    backend.hold.set()
    assert compiler.wait(30)
    stats = compiler.compilation_stats["m"]
    assert (stats["state"], stats["cause"]) == ("declined", "The build is not faster.")


def test_planner_hears_of_builds_and_their_failures(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler, clock: FakeClock
) -> None:
    promoted(compiler, model)
    backend.recipe = lambda request: Build(clock, request.model, SLOWER_S)
    compiler.build("m", "max-autotune")
    assert compiler.wait(30)
    facts = {fact.mode: (fact.status, fact.failures, fact.stale) for fact in compiler.facts()}
    assert facts == {"default": (BuildStatus.READY, 0, False), "max-autotune": (BuildStatus.FAILED, 1, False)}


def test_planner_passes_over_models_that_cannot_be_built_now(
    compiler: ModelCompiler, model: Doubler, clock: FakeClock
) -> None:
    compiler.compile_model(object(), "thing")
    served = compiler.compile_model(model.train(), "m")
    assert {(fact.model_id, fact.status, fact.changed_s) for fact in compiler.facts()} == {
        ("thing", BuildStatus.FAILED, clock.monotonic_s()),
        ("m", BuildStatus.FAILED, clock.monotonic_s()),
    }
    model.eval()
    call(served)
    assert compiler.wait(30)
    assert {fact.mode for fact in compiler.facts() if fact.model_id == "m"} == {"default"}


def test_changed_configuration_counts_from_the_next_build_on(
    compiler: ModelCompiler, backend: FakeBackend, model: Doubler
) -> None:
    promoted(compiler, model)
    compiler.config = OptimizationConfig(build_timeout_sec=7.0)
    compiler.force_recompile("m")
    assert compiler.wait(30)
    assert [request.timeout_s for request in backend.requests] == [600.0, 7.0]


def test_closed_compiler_goes_on_serving_and_builds_no_more(compiler: ModelCompiler, model: Doubler) -> None:
    served = promoted(compiler, model)
    compiler.close()
    compiler.close()
    assert not compiler.build("m")
    calls = model.calls
    call(served)
    assert model.calls == calls


@pytest.mark.parametrize(("wrong", "state"), [(None, "promoted"), ("it talks nonsense", "failed")])
def test_what_the_models_judge_finds_decides_and_is_told(
    compiler: ModelCompiler, model: Doubler, wrong: str | None, state: str
) -> None:
    asked: list[str] = []

    def judge(step: Any, precision: str, paced: Any) -> dict[str, Any]:
        asked.append(precision)
        return {"wrong": wrong, "same_top": 0.5}

    compiler.compile_model(model, "m", examples=lambda: [(X,)], judge=judge)
    assert compiler.wait(30)
    stats = compiler.compilation_stats["m"]
    assert (stats["state"], stats["agreement"]["same_top"], asked) == (state, 0.5, ["float32"])
    assert (wrong or "") in stats["cause"]
