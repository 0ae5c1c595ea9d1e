"""Metrics of several worker processes as one: each writes its own to a shared folder, any answers for all.

Counters and histograms of processes that ended stay in the sum, so that they never go back. Nothing is
written on the request path: a thread does so once a second, and a scrape writes its own worker's first.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
import psutil

from loadwise.errors import ConfigurationError
from loadwise.logs import get_logger
from loadwise.telemetry.series import Labels, Snapshot, merged

log = get_logger(__name__)
EVERY_S: Final = 1.0
ENDED: Final = "ended.json"
# A gauge's name, labels and value.
Gauge = tuple[str, Labels, float]


class Written(msgspec.Struct):
    """What one worker wrote: who it is, its counters and histograms, and its gauges."""

    pid: int
    began_s: float
    series: Snapshot
    gauges: list[Gauge] = []

    def alive(self) -> bool:
        """Whether that very process still runs."""
        return alive(self.pid, self.began_s)


def began_s(pid: int | None = None) -> float:
    """When a process (by default this one) began: seconds since the machine did; `psutil.NoSuchProcess`."""
    # Wall time alone would be another after a step of the clock.
    machine_s = psutil.boot_time()
    return float(psutil.Process(pid).create_time() - machine_s)


def alive(pid: int, since_s: float) -> bool:
    """Whether the process that had this number, and began then (`began_s`), still runs."""
    try:
        return pid > 0 and abs(began_s(pid) - since_s) < 1.0
    except psutil.NoSuchProcess:
        return False


_DECODER = msgspec.json.Decoder(Written)


class Workers:
    """This process among those that share `folder` (made with mode 0700)."""

    def __init__(
        self,
        folder: Path,
        series: Callable[[], Snapshot],
        gauges: Callable[[], list[Gauge]],
    ) -> None:
        self._folder = folder
        self._series = series
        self._gauges = gauges
        self._me = (os.getpid(), began_s())
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._join()
        self._thread = threading.Thread(target=self._run, name="loadwise-metrics", daemon=True)
        self._thread.start()

    def _join(self) -> None:
        """What a former generation left is gone; of one that still runs, the ended ones are summed up."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            message = f"metrics_dir {self._folder} cannot be used: {reason}."
            raise ConfigurationError(message, field="metrics_dir") from None
        with self._locked(fcntl.LOCK_EX):
            written = list(self._read())
            dead = [(path, found) for path, found in written if not found.alive()]
            if len(dead) == len(written):
                (self._folder / ENDED).unlink(missing_ok=True)
            else:
                self._fold([found.series for _, found in dead])
            for path, _ in dead:
                path.unlink(missing_ok=True)
            self.publish()

    def _fold(self, snapshots: list[Snapshot]) -> None:
        total = merged([self._ended(), *snapshots])
        self._write(self._folder / ENDED, {name: list(cells.items()) for name, cells in total.items()})

    def publish(self) -> None:
        """This worker's present values are in the folder."""
        pid, since_s = self._me
        own = Written(pid=pid, began_s=since_s, series=self._series(), gauges=self._gauges())
        self._write(self._folder / f"worker-{pid}.json", own)

    def _write(self, path: Path, value: object) -> None:
        with self._writing:
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_bytes(msgspec.json.encode(value))
            part.replace(path)

    def others(self) -> tuple[list[Snapshot], dict[int, list[Gauge]]]:
        """What the others wrote: counters of all there ever were, gauges by process of those that run."""
        with self._locked(fcntl.LOCK_SH):
            found = [written for _, written in self._read() if written.pid != self._me[0]]
            series = [self._ended(), *(written.series for written in found)]
        return series, {written.pid: written.gauges for written in found if written.alive()}

    def _ended(self) -> Snapshot:
        path = self._folder / ENDED
        return msgspec.json.decode(path.read_bytes(), type=Snapshot) if path.is_file() else {}

    def _read(self) -> Iterator[tuple[Path, Written]]:
        for path in sorted(self._folder.glob("worker-*.json")):
            try:
                yield path, _DECODER.decode(path.read_bytes())
            except (OSError, msgspec.MsgspecError) as error:
                log.warning("worker_metrics_unreadable", path=str(path), error=type(error).__name__)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with (self._folder / "lock").open("a") as file:
            fcntl.flock(file, how)
            yield

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            try:
                self.publish()
            except Exception as error:  # noqa: BLE001 - what changed while it was read is read the next time
                log.warning("worker_metrics_not_written", error=repr(error))

    def close(self) -> None:
        """What was counted to the end is in the folder, and stays in the sum."""
        self._stop.set()
        self._thread.join()
        self.publish()
