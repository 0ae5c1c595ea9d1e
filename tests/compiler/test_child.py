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
from loadwise.compiler.backends.family import MOST_OWED_S, Duty, descendants, resident_bytes
from loadwise.compiler.backends.watch import Limits, ProcessEnd, run_limited
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


def test_all_below_a_process_are_found_without_a_look_at_any_other() -> None:
    code = (
        "import subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE); "
        "print(child.pid, flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    assert descendants(process.pid) == [grandchild]
    assert set(descendants(os.getpid())) >= {process.pid, grandchild}
    process.communicate("\n")
    assert descendants(process.pid) == []


def test_process_that_is_gone_uses_no_memory() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert resident_bytes(process.pid) == 0


# --- a share of the time only -------------------------------------------------------------------

COUNTING = """
import sys, time
from pathlib import Path
folder, ends = Path(sys.argv[1]), time.monotonic() + float(sys.argv[2])
# Processor time of this process: what it was let have.
while time.monotonic() < ends:
    pass
(folder / "ran").write_text(str(time.process_time()))
"""


def processor_time_s(tmp_path: Path, share: float, seconds: float) -> float:
    run_limited(
        [sys.executable, "-c", COUNTING, str(tmp_path), str(seconds)],
        Limits(60.0, 2**34),
        threading.Event(),
        os.environ,
        lambda: share,
    )
    return float((tmp_path / "ran").read_text())


def test_process_computes_for_its_share_of_the_time_and_still_ends(tmp_path: Path) -> None:
    assert processor_time_s(tmp_path, 0.1, 3.0) < 1.5


def lent_s(share: float, free: float, seconds: float) -> float:
    """Processor time that a build has in so long, where others leave it `free` of the time it may run in."""
    duty, had_s, runs, step_s = Duty(), 0.0, True, 0.05
    for _ in range(round(seconds / step_s)):
        had = free * step_s if runs else 0.0
        had_s += had
        runs = duty.may_run(step_s, had, share)
    return had_s


@pytest.mark.parametrize("free", [1.0, 0.6, 0.3])
def test_build_has_its_share_of_the_time_however_little_is_free_while_it_runs(free: float) -> None:
    assert lent_s(0.25, free, 60.0) == pytest.approx(15.0, rel=0.02)


def test_build_that_is_kept_from_the_processor_is_never_stopped_and_found_starved() -> None:
    duty = Duty()
    assert all(duty.may_run(0.05, 0.001, 0.25) for _ in range(400))
    assert duty.starved


def test_what_a_build_did_not_get_is_owed_for_a_while_only() -> None:
    duty, step_s = Duty(), 0.05
    for _ in range(10_000):
        duty.may_run(step_s, 0.0, 0.25)
    ran = 0
    while duty.may_run(step_s, step_s, 0.25):
        ran += 1
    assert ran * step_s * 0.75 == pytest.approx(MOST_OWED_S, rel=0.05)


def test_stopped_time_does_not_count_against_the_time_limit(tmp_path: Path) -> None:
    code = "import time; time.sleep(2.5)"
    status, errors = run_limited(
        [sys.executable, "-c", code], Limits(1.0, 2**34), threading.Event(), os.environ, lambda: 0.1
    )
    assert status == 0, errors


def test_processor_time_that_a_build_had_is_told_while_it_runs() -> None:
    told: list[float] = []
    code = "import time\nwhile time.process_time() < 1.0: pass"
    limits = Limits(60.0, 2**34)
    run_limited([sys.executable, "-c", code], limits, threading.Event(), os.environ, progress=told.append)
    assert told == sorted(told)
    assert told[-1] > 0.5


@pytest.mark.parametrize("told", [True, False], ids=["told by the system", "looked for"])
def test_end_of_a_process_is_seen_with_and_without_the_system_s_help(
    monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    if not told:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with ProcessEnd(process) as ending:
            assert not ending.within(0.05)
            process.communicate(b"\n")
            assert ending.within(60.0)
        assert process.returncode == 0


def test_build_that_is_stopped_while_it_rests_ends_at_once() -> None:
    stop = threading.Event()
    command = [sys.executable, "-c", "import threading; threading.Event().wait()"]
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    with pytest.raises(BuildError, match="was stopped"):
        run_limited(command, Limits(60.0, 2**34), stop, os.environ, lambda: 0.01)


# --- a child that fails in every way, under a compiler that serves ------------------------------

DEATHS = {
    "raises": "raise RuntimeError('segment 7')",
    "is killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "crashes": "import os; os.abort()",
    "hangs": "import threading; threading.Event().wait()",
    "runs out of memory": "x = bytearray(2**30); import threading; threading.Event().wait()",
    "exits without a word": "import os; os._exit(0)",
}
CAUSES = {
    "raises": "segment 7",
    "is killed": "status -9 (SIGKILL): it was killed",
    "crashes": "status -6 (SIGABRT)",
    "hangs": "build_timeout_sec",
    "runs out of memory": "build_memory_bytes",
    "exits without a word": "status 0",
}


@pytest.mark.parametrize("death", DEATHS)
def test_requests_go_on_with_the_original_however_a_build_dies(
    death: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from loadwise.compiler import ModelCompiler
    from loadwise.compiler.backends import exported
    from loadwise.compiler.backends.inductor import InductorBackend
    from loadwise.settings import OptimizationConfig

    def dying(command: list[str], *rest: object) -> tuple[int, str]:
        return run_limited([sys.executable, "-c", DEATHS[death]], *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(exported, "run_limited", dying)
    monkeypatch.setattr(InductorBackend, "_hand_over", lambda self, request, work: None)
    config = OptimizationConfig(
        build_timeout_sec=2.0 if death == "hangs" else 60.0,
        build_memory_bytes=2**28 if death == "runs out of memory" else 2**34,
    )
    compiler = ModelCompiler(config, backend=InductorBackend(tmp_path))
    model, x = torch.nn.Linear(2, 2).eval(), torch.ones(1, 2)
    served = compiler.compile_model(model, "m")
    with torch.no_grad():
        assert torch.equal(served(x), model(x))
        assert compiler.wait(60)
        stats = compiler.compilation_stats["m"]
        assert (stats["state"], stats["mode"]) == ("failed", None)
        assert CAUSES[death] in stats["cause"]
        assert stats["remedy"]
        assert torch.equal(served(x), model(x))
    compiler.close()
    assert list(tmp_path.iterdir()) == []
