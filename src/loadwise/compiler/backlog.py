"""Work waits in line and is done one at a time, each on a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
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
    """Runs jobs in order, each on a thread that ends with it.

    A thread that computed with torch keeps a pool of OpenMP threads for as long as it lives. Where such
    threads are more than the processors, libgomp waits without spinning, and every step of a model that is
    served by several of them becomes slower: in a loop of small products on two cores, twice as slow.
    """

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
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
            self._waiting.append(job)
            if self._worker is None:
                self._start_next()
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
        """Pending jobs have ended, and their threads with them."""
        self.stop()
        while (worker := self._worker) is not None:
            worker.join()

    def _start_next(self) -> None:
        job = self._waiting.popleft()
        self._worker = threading.Thread(target=self._run, args=(job,), name="model-compiler", daemon=True)
        self._worker.start()

    def _run(self, job: Job) -> None:
        try:
            job.run(job.stop)
        finally:
            with self._idle:
                del self._pending[job.name]
                # Never None in between: whoever closes would take it for the end.
                if self._waiting:
                    self._start_next()
                else:
                    self._worker = None
                self._idle.notify_all()
