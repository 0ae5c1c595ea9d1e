"""Work waits in line and is done one at a time on one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Job:
    """One piece of work, named once while it is pending; `stop` is set when it is no longer wanted."""

    name: tuple[str, str]
    run: Callable[[threading.Event], None]
    # An operator asked for it.
    forced: bool = False
    stop: threading.Event = field(default_factory=threading.Event)


class Backlog:
    """Runs jobs in order; the thread starts with the first of them."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._pending: dict[tuple[str, str], Job] = {}
        self._idle = threading.Condition()
        self._worker: threading.Thread | None = None

    def add(self, job: Job) -> bool:
        """The job waits; False when one of its name is pending already, which an operator may force."""
        with self._idle:
            known = self._pending.get(job.name)
            if known is not None:
                known.forced |= job.forced
                return False
            self._pending[job.name] = job
            self._jobs.put(job)
            if self._worker is None:
                self._worker = threading.Thread(target=self._run, name="model-compiler", daemon=True)
                self._worker.start()
            return True

    def stop(self, *, forced: bool = True) -> None:
        """Pending jobs end without a result; those an operator forced only when `forced` is True."""
        with self._idle:
            for job in self._pending.values():
                if forced or not job.forced:
                    job.stop.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Blocks until nothing is pending; False when that took longer."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._pending, timeout_s)

    def close(self) -> None:
        """Pending jobs have ended, and the thread with them."""
        self.stop()
        worker, self._worker = self._worker, None
        if worker is not None:
            self._jobs.put(None)
            worker.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job.run(job.stop)
            finally:
                with self._idle:
                    del self._pending[job.name]
                    self._idle.notify_all()
