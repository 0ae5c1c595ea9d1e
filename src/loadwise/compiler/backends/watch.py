"""A child process within limits of time, memory and share of time, which dies with its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psutil

from loadwise.errors import BuildError

_LOOK_EVERY_S = 0.2
# A share of less than this would never end.
_LEAST_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that it was let run, and bytes of resident memory of the process and its children together."""

    timeout_s: float
    memory_bytes: int


def run_limited(
    command: Sequence[str],
    limits: Limits,
    stop: threading.Event,
    environment: Mapping[str, str],
    share: Callable[[], float] = lambda: 1.0,
) -> tuple[int, str]:
    """Exit status and what it wrote to stderr; `BuildError` when a limit or `stop` ended it.

    While `share()` is below 1.0 the process and all below it are stopped for the rest of the time.

    The child's stdin is a pipe that ends with this process, which is how it learns that it should end too.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            _watch(process, limits, stop, share)
        finally:
            _end(process)
        errors.seek(0)
        return process.returncode, errors.read().decode(errors="replace")


def _watch(
    process: subprocess.Popen[bytes], limits: Limits, stop: threading.Event, share: Callable[[], float]
) -> None:
    ran_s = 0.0
    while not stop.is_set():
        part = min(1.0, max(_LEAST_SHARE, share()))
        try:
            process.wait(_LOOK_EVERY_S * part)
        except subprocess.TimeoutExpired:
            ran_s += _LOOK_EVERY_S * part
        else:
            return
        if part < 1.0:
            _rest(process, _LOOK_EVERY_S * (1.0 - part), stop)
        if ran_s > limits.timeout_s:
            raise BuildError(
                f"The build took longer than build_timeout_sec ({limits.timeout_s:g} s).",
                remedy="Raise build_timeout_sec, or build when the machine is quiet.",
            )
        used = resident_bytes(process.pid)
        if used > limits.memory_bytes:
            raise BuildError(
                f"The build used {used} bytes, more than build_memory_bytes ({limits.memory_bytes}).",
                remedy="Raise build_memory_bytes, or use compile_mode default.",
            )
    raise BuildError("The build was stopped.", remedy="force_recompile starts it again.")


def _rest(process: subprocess.Popen[bytes], seconds: float, stop: threading.Event) -> None:
    """The process and all in its group do nothing for a while."""
    _signal(process, signal.SIGSTOP)
    stop.wait(seconds)
    _signal(process, signal.SIGCONT)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and all below it; what has ended counts nothing."""
    total = 0
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return total
    for member in family:
        with contextlib.suppress(psutil.Error):
            total += member.memory_info().rss
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and its group are gone."""
    _signal(process, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
