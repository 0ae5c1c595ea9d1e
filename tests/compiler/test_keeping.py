"""A good build serves again at the next start, without being made; a bad one is forgotten and made anew."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

torch = pytest.importorskip("torch")

from loadwise.compiler import ModelCompiler
from loadwise.compiler.keeping import KeepingBackend
from loadwise.compiler.store import PackageStore
from loadwise.compiler.workshop import Workshop
from loadwise.errors import BuildDeclinedError, BuildError
from loadwise.ports import Availability, BuildRequest, Built, Form
from loadwise.settings import OptimizationConfig
from loadwise.testing import FakeClock

from .conftest import FASTER_S, SLOWER_S, Build, Doubler

X = torch.arange(4.0)


class Packer:
    """Its packages hold a factor; `made` counts what was made rather than opened."""

    name = "packer"
    forms: ClassVar = {"default": Form(), "max-autotune": Form()}

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.seconds, self.factor, self.version = FASTER_S, "1.0", "1"
        self.made = 0

    def available(self) -> Availability:
        return Availability(ok=True)

    def versions(self) -> Mapping[str, str]:
        return {"packer": self.version}

    def build(self, request: BuildRequest) -> Built:
        raise NotImplementedError

    def make(self, request: BuildRequest, folder: Path) -> None:
        self.made += 1
        (folder / "factor").write_text(self.factor)

    def open(self, request: BuildRequest, folder: Path) -> Built:
        factor = float((folder / "factor").read_text())
        call = Build(self.clock, request.model, self.seconds, factor)
        return Built(call=call, accepts=lambda args, kwargs: True)


@pytest.fixture
def packer(clock: FakeClock) -> Packer:
    return Packer(clock)


@pytest.fixture
def store(tmp_path: Path) -> PackageStore:
    return PackageStore(tmp_path / "store")


def start(packer: Packer, store: PackageStore, model: Any, clock: FakeClock, **options: bool) -> Any:
    """A process that serves `model` once; what it is served by, in the compiler's words."""
    workshop = Workshop([KeepingBackend(packer, store)], store)
    compiler = ModelCompiler(OptimizationConfig(), workshop=workshop, clock=clock, **options)
    served = compiler.compile_model(model, "m", examples=lambda: [(X,)])
    assert compiler.wait(30)
    with torch.no_grad():
        assert torch.equal(served(X), X * 2 * model.weight)
    compiler.close()
    return compiler.compilation_stats["m"]


def test_second_start_serves_the_promoted_build_without_making_it(
    packer: Packer, store: PackageStore, model: Doubler, clock: FakeClock
) -> None:
    first = start(packer, store, model, clock)
    assert (first["state"], first["kept"]) == ("promoted", False)
    again = start(packer, store, Doubler(clock).eval(), clock, automatic=False)
    assert (again["state"], again["kept"], packer.made) == ("promoted", True, 1)


def other_parameters(packer: Packer, model: Doubler) -> None:
    with torch.no_grad():
        model.weight.fill_(3.0)


def other_version(packer: Packer, model: Doubler) -> None:
    packer.version = "2"


@pytest.mark.parametrize("change", [other_parameters, other_version])
def test_build_of_another_model_or_version_is_not_used(
    packer: Packer, store: PackageStore, model: Doubler, clock: FakeClock, change: Any
) -> None:
    start(packer, store, model, clock)
    other = Doubler(clock).eval()
    change(packer, other)
    assert start(packer, store, other, clock, automatic=False)["state"] == "original"


def test_kept_build_that_answers_wrongly_is_forgotten_and_made_anew(
    packer: Packer, store: PackageStore, model: Doubler, clock: FakeClock
) -> None:
    start(packer, store, model, clock)
    name = next(iter(store.entries()))
    bad = store.root.parent / "bad"
    bad.mkdir()
    (bad / "factor").write_text("1.5")
    assert store.put(name, bad, {"name": name})
    again = start(packer, store, model, clock, automatic=False)
    assert (again["state"], again["kept"], packer.made) == ("promoted", False, 2)
    assert start(packer, store, model, clock, automatic=False)["kept"]


def test_kept_build_that_cannot_be_opened_is_made_anew(
    packer: Packer, store: PackageStore, model: Doubler, clock: FakeClock
) -> None:
    start(packer, store, model, clock)
    name = next(iter(store.entries()))
    bad = store.root.parent / "bad"
    bad.mkdir()
    (bad / "factor").write_text("no number")
    store.put(name, bad, {"name": name})
    assert start(packer, store, model, clock)["state"] == "promoted"
    assert packer.made == 2


def test_wrong_and_slower_builds_are_not_kept(
    packer: Packer, store: PackageStore, model: Doubler, clock: FakeClock
) -> None:
    packer.factor = "1.5"
    assert start(packer, store, model, clock)["state"] == "failed"
    packer.factor, packer.seconds = "1.0", SLOWER_S
    assert start(packer, store, model, clock)["state"] == "declined"
    assert store.entries() == {}


def test_build_serves_where_it_cannot_be_kept_and_the_reason_is_told(
    packer: Packer, model: Doubler, clock: FakeClock, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    store = PackageStore(tmp_path / "file" / "store")
    assert start(packer, store, model, clock)["state"] == "promoted"
    assert "not kept" in store.problem


def test_build_that_finds_no_place_to_be_made_fails_with_the_reason_and_the_original_serves(
    packer: Packer, store: PackageStore, model: Doubler, clock: FakeClock, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    workshop = Workshop([KeepingBackend(packer, store, tmp_path / "file" / "building")], store)
    compiler = ModelCompiler(workshop=workshop, clock=clock)
    served = compiler.compile_model(model, "m", examples=lambda: [(X,)])
    assert compiler.wait(30)
    stats = compiler.compilation_stats["m"]
    compiler.close()
    assert (stats["state"], stats["mode"]) == ("failed", None)
    assert "NotADirectoryError" in stats["cause"]
    assert stats["remedy"]
    with torch.no_grad():
        assert torch.equal(served(X), X * 2)


def test_build_that_may_only_be_opened_is_never_made(
    packer: Packer, store: PackageStore, model: Doubler, clock: FakeClock
) -> None:
    backend = KeepingBackend(packer, store)
    request = BuildRequest(model=model, model_id="m", mode="default", examples=[((X,), {})], kept_only=True)
    with pytest.raises(BuildDeclinedError, match="No build is kept"):
        backend.build(request)
    assert packer.made == 0
    start(packer, store, model, clock)
    assert backend.build(request).kept


def test_unknown_backend_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown build backend 'fastest'"):
        Workshop.keeping(["fastest"], PackageStore(tmp_path), tmp_path)


def test_failing_to_make_leaves_no_folder_behind(
    packer: Packer, store: PackageStore, model: Doubler, tmp_path: Path
) -> None:
    def fail(request: BuildRequest, folder: Path) -> None:
        raise BuildError("no luck")

    packer.make = fail  # type: ignore[method-assign]
    request = BuildRequest(model=model, model_id="m", mode="default", examples=[((X,), {})])
    with pytest.raises(BuildError, match="no luck"):
        KeepingBackend(packer, store, tmp_path / "scratch").build(request)
    assert list((tmp_path / "scratch").iterdir()) == []
