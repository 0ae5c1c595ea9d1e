"""A child process within limits of time, memory and share of time, which dies with its parent."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from loadwise.compiler.backends.family import Duty, Family
from loadwise.errors import BuildError

_LOOK_EVERY_S = 0.05
# Of looks, those at its memory.
_MEMORY_EVERY = 4
# A share of less than this would never end.
_LEAST_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that it may compute, and bytes of resident memory of the process and its children together."""

    timeout_s: float
    memory_bytes: int


def run_limited(
    command: Sequence[str],
    limits: Limits,
    stop: threading.Event,
    environment: Mapping[str, str],
    share: Callable[[], float] = lambda: 1.0,
    progress: Callable[[float], None] = lambda computed_s: None,
) -> tuple[int, str]:
    """Exit status and what it wrote to stderr; `BuildError` when a limit or `stop` ended it.

    `progress` is told the processor time that it and all below it had so far, in seconds.

    While `share()` is below 1.0 the process and all below it are stopped whenever they have had their share
    of the time on a processor. They run ahead of nobody, unless others keep them from it for long.

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
            with ProcessEnd(process) as end:
                _watch(process, end, limits, stop, share, progress)
        finally:
            _end(process)
        errors.seek(0)
        return process.returncode, errors.read().decode(errors="replace")


class ProcessEnd:
    """The end of a process, waited for without a look in between where the system can say it (Linux)."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._handle: int | None = None
        self._poll: Callable[[float], object] | None = None

    def __enter__(self) -> ProcessEnd:
        # `Popen.wait` with a timeout looks again after 0.5, 1, 2, 4... ms, each time taking the interpreter
        # from whoever answers requests.
        with contextlib.suppress(AttributeError, OSError):
            self._handle = os.pidfd_open(self._process.pid)
            poller = select.poll()
            poller.register(self._handle, select.POLLIN)
            self._poll = poller.poll
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)

    def within(self, timeout_s: float) -> bool:
        """Whether it has ended, now or within so many seconds."""
        if self._poll is not None:
            self._poll(1000.0 * timeout_s)
            return self._process.poll() is not None
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True


def _watch(
    process: subprocess.Popen[bytes],
    end: ProcessEnd,
    limits: Limits,
    stop: threading.Event,
    share: Callable[[], float],
    progress: Callable[[float], None],
) -> None:
    family, duty, running = Family(process.pid), Duty(), True
    ran_s = had_s = 0.0
    looks = count()
    while True:
        if stop.is_set():
            raise BuildError("The build was stopped.", remedy="force_recompile starts it again.")
        if end.within(_LOOK_EVERY_S):
            return
        part, before_s, used = min(1.0, max(_LEAST_SHARE, share())), had_s, 0
        if running:
            # What is stopped uses nothing more, and looking at it would cost requests.
            had_s = max(before_s, family.processor_s())
            used = family.resident_bytes() if next(looks) % _MEMORY_EVERY == 0 else 0
        progress(had_s)
        # What it may have is its time, had or not: one that hangs ends, one that is kept from it does not.
        ran_s += min(_LOOK_EVERY_S, max(had_s - before_s, part * _LOOK_EVERY_S))
        running = _set_running(process, running, duty.may_run(_LOOK_EVERY_S, had_s - before_s, part))
        family.yield_to_all(part < 1.0 and not duty.starved)
        _hold_to(limits, ran_s, used)


def _hold_to(limits: Limits, ran_s: float, used: int) -> None:
    if ran_s > limits.timeout_s:
        raise BuildError(
            f"The build took longer than build_timeout_sec ({limits.timeout_s:g} s).",
            remedy="Raise build_timeout_sec, or build when the machine is quiet.",
        )
    if used > limits.memory_bytes:
        raise BuildError(
            f"The build used {used} bytes, more than build_memory_bytes ({limits.memory_bytes}).",
            remedy="Raise build_memory_bytes, or use compile_mode default.",
        )


def _set_running(process: subprocess.Popen[bytes], running: bool, wanted: bool) -> bool:
    """The process and all in its group run, or do nothing."""
    if running is not wanted:
        _signal(process, signal.SIGCONT if wanted else signal.SIGSTOP)
    return wanted


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and its group are gone."""
    _signal(process, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
