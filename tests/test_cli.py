"""The command line: what a user types wrong costs one line, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def loadwise(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user would, in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LOADWISE_")}
    return subprocess.run(
        [sys.executable, "-c", "from loadwise.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**clean, "COLUMNS": "200", **environment},
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--model", "nodirectory"], "--model takes NAME=DIR"),
        (["serve", "--model", "a=x", "--model", "a=y"], "names 'a' twice"),
        (["serve", "--upstream", "a="], "--upstream takes NAME=URL"),
        (["serve", "--upstream", "a=not-a-url"], "url"),
        (["serve", "--host", "0.0.0.0"], "--api-key"),
        (["serve", "--preset", "fastest"], "'production' or 'performance'"),
        (["serve", "--config", "nowhere.yaml"], "Cannot read nowhere.yaml"),
        (["serve", "--port", "70000"], "65535"),
        (["status", "--url", "ftp://127.0.0.1"], "http://"),
        (["status", "--url", "http://127.0.0.1:9"], "Is 'loadwise serve' running there?"),
        (["config", "--explain", "nothing"], "Unknown setting 'nothing'"),
    ],
)
def test_a_mistake_costs_one_line_and_exit_code_2(arguments: list[str], words: str) -> None:
    ended = loadwise(*arguments)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_model_folder_without_weights_is_named(tmp_path: Path) -> None:
    ended = loadwise("serve", "--port", "0", "--model", f"empty={tmp_path}")
    assert ended.returncode == 2
    assert str(tmp_path) in ended.stderr
    assert "Traceback" not in ended.stderr


def test_config_prints_the_settings_in_force_as_json() -> None:
    ended = loadwise("config", "--json", LOADWISE_PORT="1234")
    assert ended.returncode == 0
    assert json.loads(ended.stdout)["port"] == 1234


def test_config_explains_a_setting() -> None:
    ended = loadwise("config", "--explain", "max_ensemble_size")
    assert ended.returncode == 0
    assert "64" in ended.stdout


def test_version_is_printed() -> None:
    assert loadwise("version").stdout.strip() == "0.1.0"


def test_help_lists_every_command() -> None:
    shown = loadwise("--help").stdout
    for command in ("serve", "status", "report", "bench", "config", "version"):
        assert command in shown
