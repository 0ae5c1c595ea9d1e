"""The journal itself: a bounded queue that requests append to, and one thread that writes."""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from loadwise.errors import LoadwiseError
from loadwise.logs import get_logger
from loadwise.ports import Clock, JsonObject
from loadwise.telemetry.aside import set_aside
from loadwise.telemetry.journal import records
from loadwise.telemetry.journal.batches import written
from loadwise.telemetry.journal.events import Event, Witness
from loadwise.telemetry.journal.owner import Right
from loadwise.telemetry.journal.schema import CorruptError, is_corrupt
from loadwise.telemetry.journal.scribe import Scribe
from loadwise.telemetry.journal.states import States
from loadwise.telemetry.journal.store import FILE, Store

log = get_logger(__name__)
Answer = TypeVar("Answer")
# What happened is on disk after this long, or when the writer is woken.
FLUSH_S: Final = 0.5
# A disk that took nothing is tried again after this long.
RETRY_S: Final = 5.0
SEGMENT_S: Final = 600.0
# Events that one commit takes.
BATCH: Final = 2_000


class JournalError(LoadwiseError):
    """The journal cannot be written now; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is kept: bytes on disk, seconds, and events that may wait for the writer."""

    max_bytes: int = 40 * 1024**2
    max_age_s: float = 14 * 86_400.0
    queue_size: int = 20_000


class Journal:
    """`take` an event: it is queued, or counted as dropped, and never waits or raises.

    Whatever happens to the disk, requests go on; `as_json` says what is wrong.
    """

    def __init__(self, folder: Path, clock: Clock, limits: Limits | None = None) -> None:
        self.folder = folder
        self.limits = limits or Limits()
        self.dropped = 0
        self.fault: str | None = None
        self.set_aside: Path | None = None
        self._clock = clock
        self._queue: deque[Event] = deque()
        # What a request pays for: takes an event, or counts it as dropped.
        self.take: Final[Witness] = self._taker()
        self._states = States()
        self._asked: SimpleQueue[tuple[Callable[[Store], Any], Future[Any]]] = SimpleQueue()
        self._wake = threading.Event()
        self._ending = False
        self._thread: threading.Thread | None = None
        self._store: Store | None = None
        # From the first opening to the end, whatever happens to the file.
        self._right = Right(folder)
        self._scribe = Scribe()
        self._written = 0
        self._unwritable = 0
        self._told_lost = 0
        self._retry_s = float("-inf")
        self._segment_s = float("-inf")

    # --- from anywhere ---

    def _taker(self) -> Witness:
        # Names of this function are found faster than those of an object.
        queue, room = self._queue, self.limits.queue_size
        append = queue.append

        def take(event: Event) -> None:
            if len(queue) < room:
                append(event)
            else:
                self.dropped += 1

        return take

    def keep(self, states: Mapping[str, bytes | None]) -> None:
        """States are kept by name, all of them or none, for a start to find; None: no longer."""
        self._states.keep(states)

    def wake(self) -> None:
        """What waits is written now."""
        self._wake.set()

    def replace(self, states: Mapping[str, bytes | None]) -> None:
        """What another process kept is known: these states are kept from now on, no earlier ones of ours."""
        self._states.replace(states)
        self._right.succeeded = False

    @property
    def taken_over(self) -> bool:
        """Another process wrote the folder before this one could, and what it kept is to be read first."""
        return self._right.succeeded

    def open(self) -> None:
        """The file is open, made or set aside as need be, and the writer runs."""
        self._reopen()
        self._thread = threading.Thread(target=self._run, name="loadwise-journal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Everything that happened is written, and the writer has ended; may be called twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ending = True
            self._wake.set()
            thread.join()

    def ask(self, question: Callable[[Store], Answer], timeout_s: float = 10.0) -> Answer:
        """What `question` answers in the writer's thread, after everything that happened was written.

        Raises `JournalError` where the journal cannot be written.
        """
        if self._thread is None:
            raise JournalError("The journal is closed.")
        waiting: Future[Answer] = Future()
        self._asked.put((question, waiting))
        self._wake.set()
        try:
            return waiting.result(timeout_s)
        except TimeoutError:
            raise JournalError("The journal's disk does not answer.") from None

    def flush(self) -> None:
        """Everything that happened is on disk; `JournalError` where it cannot be."""
        self.ask(lambda _: None)

    def as_json(self) -> JsonObject:
        """Where it is, what it holds, what it lost and what is wrong with it."""
        store = self._store
        return {
            "path": str(self.folder),
            "written": self._written,
            "waiting": len(self._queue),
            "dropped": self.lost,
            "size_bytes": None if store is None else store.size_bytes(),
            "max_bytes": self.limits.max_bytes,
            "fault": self.fault,
            "set_aside": None if self.set_aside is None else str(self.set_aside),
        }

    @property
    def lost(self) -> int:
        """Events that were never written: the queue was full, or nothing could write them."""
        return self.dropped + self._unwritable

    # --- the writer's thread ---

    def _run(self) -> None:
        while not self._ending:
            self._wake.wait(FLUSH_S)
            self._wake.clear()
            self._turn()
        self._turn(last=True)
        if self._store is not None:
            self._store.close()
        self._right.close()

    def _turn(self, *, last: bool = False) -> None:
        # Questions that came before the queue was read are answered after it was written.
        asked = [self._asked.get() for _ in range(self._asked.qsize())]
        try:
            if self._ready():
                while self._write(last=last):
                    pass
                self._keep_room(last=last)
        except Exception as error:  # noqa: BLE001 - whatever fails, requests go on; it is logged and shown
            self._failed(error)
        for question, waiting in asked:
            self._answer(question, waiting)

    def _write(self, *, last: bool) -> bool:
        """Whether more waits after one batch; where the disk takes nothing, the batch waits again."""
        queue = self._queue
        happened = [queue.popleft() for _ in range(min(BATCH, len(queue)))]
        # States come with the newest events: both are of one moment. None before another's were read.
        states = {} if queue or self._right.succeeded else self._states.take()
        lost, waiting = self.dropped + self._unwritable, self._scribe.waiting
        try:
            rows = self._rows(happened, lost - self._told_lost, last=last and not queue)
            if rows or happened or states:
                self._commit(happened, rows, states)
        except (sqlite3.Error, OSError):
            # Nothing of it is on disk; what an earlier batch left to be completed waits again too.
            queue.extendleft(reversed(happened))
            self._scribe.waiting = waiting
            self._states.put_back(states)
            raise
        except Exception:
            # Trying these again would fail again.
            self._unwritable += len(happened) + (waiting is not None)
            self._scribe.waiting = None
            self._states.put_back(states)
            raise
        self._told_lost = lost
        return bool(queue)

    def _rows(self, happened: list[Event], lost: int, *, last: bool) -> list[records.Record]:
        rows = self._scribe.rows(happened)
        if last:
            rows += self._scribe.rest()
        if lost:
            rows.insert(0, records.Dropped(lost, self._clock.monotonic_s()))
        return rows

    def _commit(
        self, happened: list[Event], rows: list[records.Record], states: Mapping[str, bytes | None]
    ) -> None:
        store = self._store
        if store is None:
            raise OSError("it is closed")
        wall_s = self._clock.wall_s()
        batch = written(happened, rows, wall_s - self._clock.monotonic_s())
        if batch.rows or batch.changes or states:
            store.write(batch, states, wall_s)
        self._written += batch.rows
        if batch.lost:
            self._unwritable += batch.lost
            # Later rows may have rested on those.
            self._scribe.restart()

    def _keep_room(self, *, last: bool) -> None:
        store, now_s = self._store, self._clock.monotonic_s()
        if store is None:
            return
        if last or store.over_full() or store.segment_full or now_s - self._segment_s >= SEGMENT_S:
            self._segment_s = now_s
            store.seal(self._clock.wall_s())
            self._scribe.restart()
            store.make_room(self._clock.wall_s() - self.limits.max_age_s)

    def _answer(self, question: Callable[[Store], Any], waiting: Future[Any]) -> None:
        if self._store is None:
            waiting.set_exception(JournalError(f"The journal cannot be written: {self.fault}."))
            return
        try:
            waiting.set_result(question(self._store))
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            waiting.set_exception(JournalError(f"The journal cannot be written: {error}."))
        except LoadwiseError as error:
            waiting.set_exception(error)

    # --- the file ---

    def _ready(self) -> bool:
        """Whether the file is open; one that failed is tried again now and then."""
        if self._store is None and self._clock.monotonic_s() >= self._retry_s:
            self._reopen()
        return self._store is not None

    def _reopen(self) -> None:
        try:
            self._right.take()
            try:
                self._store = Store.open(self.folder, self.limits.max_bytes)
            except CorruptError as error:
                self._put_aside(error)
                self._store = Store.open(self.folder, self.limits.max_bytes)
        except (sqlite3.Error, OSError, LoadwiseError) as error:
            self._failed(error)
        else:
            self._segment_s = self._clock.monotonic_s()
            if self.fault is not None:
                log.info("journal_written_again", path=str(self.folder))
            self.fault = None

    def _put_aside(self, error: Exception) -> None:
        self.set_aside = set_aside(self.folder / FILE, self._clock.wall_s())
        self._states.renew()
        log.warning("journal_corrupt", set_aside=str(self.set_aside), reason=str(error))

    def _failed(self, error: Exception) -> None:
        """Nothing is written until the disk was tried again; what comes meanwhile is counted as lost."""
        if self.fault is None:
            # A disk that takes nothing is told of in one line; what nobody expected is told of in full.
            trace = None if isinstance(error, sqlite3.Error | OSError | LoadwiseError) else error
            log.warning("journal_not_written", path=str(self.folder), reason=str(error), exc_info=trace)
        self.fault = str(error) or type(error).__name__
        self._retry_s = self._clock.monotonic_s() + RETRY_S
        store, self._store = self._store, None
        self._scribe.restart()
        if store is not None:
            store.close()
        if isinstance(error, sqlite3.Error) and is_corrupt(error):
            self._put_aside(error)
