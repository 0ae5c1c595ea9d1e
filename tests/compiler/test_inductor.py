"""torch's own compiler, for real: exported here, compiled in a child, loaded back on the module's tensors."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from loadwise.clock import SystemClock
from loadwise.compiler import ModelCompiler
from loadwise.compiler.backends import inductor
from loadwise.compiler.backends.accepts import Acceptance
from loadwise.compiler.backends.export import export
from loadwise.compiler.backends.inductor import InductorBackend
from loadwise.compiler.verify import difference
from loadwise.errors import BuildDeclinedError, BuildError
from loadwise.ports import BuildRequest
from loadwise.settings import OptimizationConfig

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="unavailable: g++")


class Residual(torch.nn.Module):
    """Many small operations in a row, which is where a compiler gains."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(8, 8)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, *, gain: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        for _ in range(4):
            x = torch.tanh(self.dropout(self.inner(x)) * 1.5 + x.sin())
        return {"out": x if gain is None else x * gain, "mean": x.mean(-1)}


class Noisy(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Counting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x + self.count


class Branching(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x


class Locked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def request(model: Any, *examples: tuple[Any, ...], mode: str = "default", **changes: Any) -> BuildRequest:
    given = [(example, {}) for example in examples or ((torch.ones(4, 8),),)]
    return BuildRequest(
        model=model.eval(),
        model_id="m",
        mode=mode,
        examples=given,
        **{"dynamic": mode == "default"} | changes,
    )


@pytest.fixture
def quiet_export() -> Iterator[None]:
    """Exporting warns about torch's own use of its deprecated parts."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Noisy, "uses chance"),
        (Counting, "buffers \\(count\\)"),
        (Branching, "cannot be exported"),
        (Locked, "cannot be copied"),
    ],
)
@pytest.mark.usefixtures("quiet_export")
def test_model_that_a_build_could_not_replace_is_declined(model: Any, why: str) -> None:
    with pytest.raises(BuildDeclinedError, match=why):
        export(request(model()))


@pytest.mark.usefixtures("quiet_export")
def test_place_where_the_graph_breaks_is_named() -> None:
    with pytest.raises(BuildDeclinedError) as caught:
        export(request(Branching()))
    assert caught.value.graph_break.startswith("forward (test_inductor.py:")
    assert "if float(x.sum()) > 0" in caught.value.graph_break


@pytest.mark.usefixtures("quiet_export")
def test_exporting_leaves_the_module_as_it_was() -> None:
    model = Residual().eval()
    before = dict(model.named_parameters())
    program = export(request(model))
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    assert program.state_dict["inner.weight"].data_ptr() == model.inner.weight.data_ptr()


@pytest.mark.usefixtures("quiet_export")
def test_dynamic_graph_takes_other_sizes_and_refuses_what_it_was_not_traced_for() -> None:
    taken = request(Residual())
    takes = Acceptance.of(export(taken), taken.examples[0]).takes
    assert takes((torch.ones(9, 8),), {})
    assert not takes((torch.ones(1, 8),), {})
    assert not takes((torch.ones(4, 7),), {})
    assert not takes((torch.ones(4, 8, dtype=torch.float64),), {})
    assert not takes((torch.ones(8, 4).t(),), {})
    assert not takes((torch.ones(4, 8),), {"gain": torch.ones(1)})
    assert not takes(("text",), {})


@pytest.mark.usefixtures("quiet_export")
def test_static_graph_takes_the_sizes_of_its_example_only() -> None:
    fixed = request(Residual(), mode="max-autotune")
    takes = Acceptance.of(export(fixed), fixed.examples[0]).takes
    assert takes((torch.ones(4, 8),), {})
    assert not takes((torch.ones(5, 8),), {})


def test_modes_become_the_options_that_torch_compile_has_for_them() -> None:
    assert "max_autotune" not in inductor.compile_options("default")
    tuned = inductor.compile_options("max-autotune")
    assert tuned["max_autotune"] is True
    assert "triton.cudagraphs" not in tuned
    assert tuned["cpp.threads"] == torch.get_num_threads()


def test_without_a_compiler_the_backend_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert InductorBackend().available().reason == "no-such-compiler"


@pytest.mark.usefixtures("quiet_export")
@pytest.mark.parametrize(
    ("limit", "why"), [({"timeout_s": 0.2}, "build_timeout_sec"), ({"memory_bytes": 1}, "build_memory_bytes")]
)
def test_build_beyond_its_limits_is_ended_and_leaves_nothing_behind(
    tmp_path: Path, limit: dict[str, Any], why: str
) -> None:
    with pytest.raises(BuildError, match=why):
        InductorBackend(tmp_path).build(request(Residual(), **limit))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("quiet_export")
@needs_compiler
def test_real_build_is_promoted_serves_other_sizes_and_yields_to_new_parameters() -> None:
    torch.manual_seed(3)
    model = Residual().eval()
    compiler = ModelCompiler(OptimizationConfig(), clock=SystemClock())
    served = compiler.compile_model(model, "residual")
    with torch.no_grad():
        served(torch.randn(4, 8))
        assert compiler.wait(800)
        stats = compiler.compilation_stats["residual"]
        assert stats["state"] == "promoted", stats
        assert stats["speedup"] > 1
        assert served.active is not None
        built = served.active.built
        assert built is not None
        for rows in (2, 4, 33):
            x = torch.randn(rows, 8)
            assert built.accepts((x,), {})
            assert difference(model(x), served(x)) is None
        model.load_state_dict({name: value * 0.5 for name, value in model.state_dict().items()})
        x = torch.randn(4, 8)
        assert torch.equal(served(x)["out"], model(x)["out"])
    assert compiler.compilation_stats["residual"]["state"] == "original"
    compiler.close()
