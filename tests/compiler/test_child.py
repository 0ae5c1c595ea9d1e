"""The process that compiles: what it says, what it leaves, and that importing the compiler costs no torch."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from loadwise.compiler.backends.exported import JOB, PROGRAM, RESULT
from loadwise.compiler.backends.watch import Limits, resident_bytes, run_limited
from loadwise.errors import BuildError

JOB_VALUES = {
    "backend": "inductor",
    "mode": "default",
    "threads": 1,
    "dynamic": True,
    "options": {},
    "recipe": None,
}


def run(*command: str, timeout_s: float = 120.0, memory_bytes: int = 2**34) -> tuple[int, str]:
    limits = Limits(timeout_s, memory_bytes)
    return run_limited([sys.executable, *command], limits, threading.Event(), os.environ)


def test_importing_the_compiler_imports_no_torch() -> None:
    code = "import sys, loadwise.compiler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_child_says_what_failed_and_ends_well(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / JOB).write_text(json.dumps(JOB_VALUES))
    (tmp_path / PROGRAM).write_bytes(b"no program")
    status, errors = run("-m", "loadwise.compiler.backends.child", str(tmp_path))
    assert status == 0, errors
    assert "compiler failed" in json.loads((tmp_path / RESULT).read_text())["error"]


def test_status_and_stderr_come_back() -> None:
    status, errors = run("-c", "import sys; sys.exit('no luck')")
    assert (status, errors.strip()) == (1, "no luck")


def test_process_over_its_time_is_ended_with_all_below_it() -> None:
    code = (
        "import subprocess, sys; "
        "subprocess.Popen([sys.executable, '-c', 'import threading; threading.Event().wait()']); "
        "import threading; threading.Event().wait()"
    )
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(BuildError, match="build_timeout_sec"):
        run("-c", code, timeout_s=1.0)
    after = {child.pid for child in psutil.Process().children(recursive=True)}
    assert after <= before


def test_process_over_its_memory_is_ended_with_the_setting_named() -> None:
    with pytest.raises(BuildError, match="build_memory_bytes"):
        run("-c", "import threading; threading.Event().wait()", memory_bytes=1)


def test_process_that_is_gone_uses_no_memory() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert resident_bytes(process.pid) == 0
