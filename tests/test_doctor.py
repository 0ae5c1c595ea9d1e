"""`make doctor`: what is missing is named with its remedy, and only what is needed fails."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "doctor.py"


@pytest.fixture
def doctor() -> ModuleType:
    spec = importlib.util.spec_from_file_location("doctor", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_runs_with_nothing_installed() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert "python3-venv" in done.stdout
    assert done.returncode == ("missing" in done.stdout.split("\n\n")[0])


def test_a_missing_compiler_is_named_but_fails_nothing(
    doctor: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    finding = doctor.check_compiler()
    assert finding.state == "without"
    assert "apt-get install g++" in finding.line()


def test_missing_headers_are_named_but_fail_nothing(
    doctor: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda _name: str(tmp_path))
    assert "python3-dev" in doctor.check_headers().line()
    assert doctor.check_headers().state == "without"


def test_a_missing_promtool_is_named_but_fails_nothing(
    doctor: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: None)
    assert doctor.check_promtool().state == "without"
    assert "apt-get install prometheus" in doctor.check_promtool().line()


def test_a_python_without_venv_fails(
    doctor: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda _name: None)
    assert doctor.main() == 1
    assert "missing  python3-venv: sudo apt-get install python3-venv" in capsys.readouterr().out


@pytest.mark.parametrize(("version", "state"), [((3, 10), "missing"), ((3, 11), "ok"), ((3, 14), "missing")])
def test_only_supported_pythons_pass(
    doctor: ModuleType, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], state: str
) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (*version, 0, "final", 0))
    assert doctor.check_python().state == state


def test_a_full_disk_fails_and_says_what_is_needed(
    doctor: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "DISK_BYTES", 10**18)
    assert doctor.check_disk().state == "missing"
    assert "are needed" in doctor.check_disk().text


def test_memory_that_cannot_be_read_is_not_invented(
    doctor: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert doctor.available_memory_bytes(str(tmp_path / "none")) is None
    (tmp_path / "meminfo").write_text("MemTotal: 5 kB\nMemAvailable:     2048 kB\n")
    assert doctor.available_memory_bytes(str(tmp_path / "meminfo")) == 2048 * 1024
    monkeypatch.setattr(doctor, "available_memory_bytes", lambda: None)
    assert doctor.check_memory().state == "without"
    monkeypatch.setattr(doctor, "available_memory_bytes", lambda: 1024)
    assert "builds may be stopped" in doctor.check_memory().text


def test_an_unknown_processor_fails(doctor: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "machine", lambda: "s390x")
    assert "use --upstream" in doctor.check_processor().text


def test_a_machine_without_make_is_told(doctor: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: None)
    assert doctor.check_make().state == "missing"
