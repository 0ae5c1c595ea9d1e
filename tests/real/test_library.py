"""The origin's classes take a real `AsyncLLM` of either engine and its real configuration."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]
SESSION = Path(__file__).with_name("library_session.py")


@pytest.mark.parametrize("engine", ["aphrodite", "vllm"])
def test_a_real_engine_client_is_read_and_served(
    engine: str, pages: Any, model_folder: Path, engine_environment: dict[str, str], tmp_path: Path
) -> None:
    venv: Path = pages.venv(engine)
    environment = {**os.environ, **engine_environment, "PYTHONPATH": "", "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run(
        [str(venv / "bin/python"), str(SESSION), engine, str(model_folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SEEN "))[5:])
    assert seen["tokens"] == 400
    assert 1 in seen["running"]
    assert seen["after"] == 0
    assert seen["capacity"] == 8
    assert "/v1/optimization/status" in seen["routes"]
    assert seen["requests"] == 1
