"""Several worker processes: any of them answers for all, exactly, whatever became of the others."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from loadwise.errors import ConfigurationError
from loadwise.telemetry import names, workers
from loadwise.telemetry.prometheus import Telemetry

WORKER = """
import sys
from pathlib import Path
from loadwise.telemetry import names
from loadwise.telemetry.prometheus import Telemetry
telemetry = Telemetry()
SILENT = (names.ALERT_ACTIVE, ("silent_member", "page"), 1.0)
telemetry.gauges_from(
    lambda: [
        (names.IN_FLIGHT, ("fast",), 2.0), (names.CONFIG_VERSION, (), 1.0), (names.LOAD_SCORE, (), 0.9),
        (names.RUNNING, (), 0.0), SILENT, SILENT,
    ]
)
telemetry.share(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    telemetry.count(names.OUTPUT_TOKENS, "fast", by=3)
    telemetry.observe(names.FIRST_TOKEN_SECONDS, "fast", value=0.02)
telemetry.close()
print("counted", flush=True)
sys.stdin.readline()
"""


def start(folder: Path, requests: int) -> subprocess.Popen[str]:
    """A worker process that has counted its requests and still runs."""
    command = [sys.executable, "-c", WORKER, str(folder), str(requests)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "counted\n"
    return worker


def end(worker: subprocess.Popen[str], *, kill: bool = False) -> None:
    if kill:
        worker.kill()
    worker.communicate("\n", timeout=30)


@pytest.fixture
def ours(tmp_path: Path):  # type: ignore[no-untyped-def]
    telemetry = Telemetry()
    telemetry.gauges_from(
        lambda: [
            (names.IN_FLIGHT, ("fast",), 1.0),
            (names.CONFIG_VERSION, (), 1.0),
            (names.LOAD_SCORE, (), 0.4),
            (names.RUNNING, (), 1.0),
            (names.ALERT_ACTIVE, ("silent_member", "page"), 1.0),
        ]
    )
    telemetry.share(tmp_path / "metrics")
    telemetry.count(names.OUTPUT_TOKENS, "fast", by=5)
    yield telemetry
    telemetry.close()


def tokens(telemetry: Telemetry) -> float | None:
    return telemetry.value(names.OUTPUT_TOKENS, {"member": "fast"})


def test_real_processes_are_summed_and_the_dead_stay_in_the_sum(ours: Telemetry, tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    first, second = start(folder, 100), start(folder, 7)
    try:
        assert tokens(ours) == 5 + 3 * 107
        assert b'time_to_first_token_seconds_count{member="fast"} 107.0' in ours.render()[0]
        assert ours.value(names.IN_FLIGHT, {"member": "fast"}) == 1 + 2 + 2
        for process in (os.getpid(), first.pid, second.pid):
            assert ours.value(names.CONFIG_VERSION, {"worker": str(process)}) == 1
        # The worst of all, and what holds of all.
        assert ours.value(names.LOAD_SCORE) == 0.9
        assert ours.value(names.RUNNING) == 0.0
        assert ours.value(names.ALERT_ACTIVE, {"alert": "silent_member", "severity": "page"}) == 2.0
        end(first, kill=True)
        assert tokens(ours) == 5 + 3 * 107
        assert ours.value(names.IN_FLIGHT, {"member": "fast"}) == 1 + 2
        third = start(folder, 1)
        assert tokens(ours) == 5 + 3 * 108
        end(third)
    finally:
        for worker in (first, second):
            if worker.poll() is None:
                end(worker)
    assert tokens(ours) == 5 + 3 * 108
    assert ours.value(names.IN_FLIGHT, {"member": "fast"}) == 1
    assert ours.value(names.LOAD_SCORE) == 0.4
    assert ours.value(names.RUNNING) == 1.0


def test_a_new_generation_begins_at_zero(tmp_path: Path) -> None:
    end(start(tmp_path, 9))
    telemetry = Telemetry()
    telemetry.share(tmp_path)
    assert tokens(telemetry) is None
    telemetry.close()


def test_the_folder_is_private_and_a_broken_file_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = Telemetry()
    telemetry.share(tmp_path / "metrics")
    assert (tmp_path / "metrics").stat().st_mode & 0o777 == 0o700
    (tmp_path / "metrics" / "worker-1.json").write_bytes(b"{")
    telemetry.count(names.OUTPUT_TOKENS, "fast")
    assert tokens(telemetry) == 1
    assert "worker_metrics_unreadable" in caplog.text
    telemetry.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="metrics_dir"):
        Telemetry().share(tmp_path / "file" / "metrics")


def test_a_figure_that_cannot_be_read_once_does_not_silence_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "EVERY_S", 0.01)
    calls, again = itertools.count(), threading.Event()

    def gauges() -> list[tuple[str, tuple[str, ...], float]]:
        call = next(calls)
        if call == 1:
            raise RuntimeError("dictionary changed size during iteration")
        if call == 2:
            again.set()
        return []

    shared = workers.Workers(tmp_path / "metrics", dict, gauges)
    try:
        assert again.wait(30.0)
    finally:
        shared.close()


def test_a_step_of_the_wall_clock_ends_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    since_s, machine_s = workers.began_s(), psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: machine_s + 3600.0)
    assert workers.alive(os.getpid(), since_s)
    assert not workers.alive(os.getpid(), since_s - 3600.0)
