"""Starts, watches and stops the servers that the benchmarks measure."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


def stop_servers_when_told() -> None:
    """SIGTERM ends the benchmark like an interrupt: its servers are stopped first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def free_port() -> int:
    """A port that nothing listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def shown(words: Sequence[str]) -> str:
    """A command line without this machine's folders, for results that others read."""
    return shlex.join(_without_folder(word) for word in words)


def _without_folder(word: str) -> str:
    name, separator, path = word.rpartition("=")
    return f"{name}{separator}{Path(path).name}" if path.startswith("/") else word


@dataclass
class Server:
    """A server in a process group of its own; use it as a context."""

    name: str
    command: Sequence[str]
    url: str
    log: Path
    env: Mapping[str, str]
    # A path that answers 200 once the server can serve.
    ready_path: str
    start_timeout_s: float = 600.0
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.env},
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + self.start_timeout_s
        while time.monotonic() < deadline_s:
            if self.process is not None and self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended with code {self.process.returncode}; see {self.log}.")
            if self._answers():
                return
            time.sleep(0.2)
        raise SystemExit(f"{self.name} did not become ready in {self.start_timeout_s:g} s; see {self.log}.")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self.ready_path, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _stop(self) -> None:
        if self.process is None:
            return
        self.resume()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _processes(self) -> list[psutil.Process]:
        if self.process is None:
            return []
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def pause(self) -> None:
        """The server takes no CPU until `resume`."""
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        """The server runs again."""
        for process in reversed(self._processes()):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def cpu_s(self) -> float:
        """Seconds of CPU that its processes have used so far."""
        total = 0.0
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def exact_cpu_s(self) -> float:
        """The same to the nanosecond, where the kernel tells: `cpu_s` counts whole ticks of each process."""
        total = 0.0
        for process in self._processes():
            with suppress(OSError, psutil.NoSuchProcess):
                # What clock_getcpuclockid(3) makes of a process id.
                total += time.clock_gettime((~process.pid << 3) | 2)
        return total

    def idle_cores(self, seconds: float = 5.0) -> float:
        """CPU used per second while nobody asks anything."""
        before = self.cpu_s()
        time.sleep(seconds)
        return (self.cpu_s() - before) / seconds

    def memory_bytes(self) -> int:
        """Proportional set size over all its processes."""
        total = 0
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total
