"""The pages of the engines: what they say to type is typed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]


def test_the_commands_of_the_engines_page_work(rig: Any, pages: Any) -> None:
    if not rig.inside:
        pytest.skip("a page is about an engine with loadwise inside")
    shown = [b for b in pages.blocks(rig.engine) if b.heading in {"See it work", "Switch off"}]
    spoken = [block.command for block in shown if block.command.startswith("curl")]
    assert len(spoken) == 4
    said = [pages.run(rig, command) for command in spoken]
    assert '"inside"' in said[0]
    assert "x-loadwise-strategy" in said[1]
    assert '"status":"configured"' in said[2]
    assert '"running":false' in said[3]
    with rig.operator() as operator:
        assert operator.post("/v1/optimization/start").status_code == 200
    rig.configure(ceilings={})


@pytest.mark.parametrize("engine", ["aphrodite", "vllm"])
class TestInstalling:
    """Beside an engine, in its environment, as the page says."""

    def test_removing_leaves_nothing_and_installing_again_adds_no_complaint(
        self, engine: str, pages: Any
    ) -> None:
        venv: Path = pages.venv(engine)
        before = (venv / "pip-check-before.txt").read_text().splitlines()
        (remove,) = [b.command for b in pages.blocks(engine) if "uninstall" in b.command]
        (install,) = [b.command for b in pages.blocks(engine) if b.heading == "Install"]
        assert _complaints(venv) == before
        _shell(venv, remove)
        try:
            assert _ours(venv) == []
            assert set(_complaints(venv)) <= set(before)
        finally:
            _shell(venv, install)
        assert _complaints(venv) == before
        assert len(_ours(venv)) > 2


def _shell(venv: Path, command: str) -> str:
    environment = {
        **os.environ,
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "PIP_FIND_LINKS": str(venv.parent / "wheels"),
        "PYTHONPATH": "",
    }
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _complaints(venv: Path) -> list[str]:
    command = [str(venv / "bin" / "pip"), "check"]
    environment = {**os.environ, "PYTHONPATH": ""}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    ).stdout.splitlines()


def _ours(venv: Path) -> list[Path]:
    """Files of ours in the environment; pip leaves an empty folder inside a package that stays."""
    (site,) = venv.glob("lib/python3*/site-packages")
    origin = [*site.glob("aphrodite/engine/server_side_optimizer*"), *site.glob("aphrodite/endpoints/**/*")]
    found = [*site.glob("loadwise*/**/*"), *origin, *(venv / "bin").glob("loadwise*")]
    return [path for path in found if path.is_file()]
