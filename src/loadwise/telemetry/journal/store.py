"""The journal's file: SQLite in WAL mode, written by one thread; a corrupt file is set aside, never fatal.

Rows come in batches: one compressed blob per commit, digests of the request ids that it is about beside it.
Batches belong to a segment; each segment stands on its own, so that the oldest can go when room runs out.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadwise.telemetry.journal.batches import Written
from loadwise.telemetry.journal.bodies import digests, joined, packed
from loadwise.telemetry.journal.owner import made_private
from loadwise.telemetry.journal.schema import (
    CorruptError,
    NewerError,
    Transaction,
    is_corrupt,
    prepare,
    scalar,
)

FILE: Final = "journal.sqlite3"
# Room is made down to this share of the cap, so that it is not made at every commit.
KEPT_SHARE: Final = 0.85
# A segment ends at this share of the cap, so that the oldest can go and most of the history stays.
SEGMENT_SHARE: Final = 1 / 16
# The file is looked at after this share of the cap was written, and a commit writes whole pages.
LOOK_SHARE: Final = 1 / 64
COMMIT_BYTES: Final = 24_576
# Feedback takes at most this share of the cap: who gives it must not drive out what was decided.
FEEDBACK_SHARE: Final = 1 / 4
# What a row of it takes beside its names, and these twice: in the table and around it.
_FEEDBACK_ROW: Final = "2 * length(request_id || source || member || tenant) + 64"
# A feedback row outlives its request's time for feedback; older ones no longer count.
FEEDBACK_KEPT_S: Final = 40 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One piece of feedback; `at_s` is wall time.

    A request id may be used again: `started_s` (monotonic) is when the meant answer was dispatched, 0 where
    an older version did not say.
    """

    request_id: str
    source: str
    member: str
    tenant: str
    score: float
    at_s: float
    started_s: float = 0.0


class Store:
    """The open file; it belongs to the writer's thread. Every method may raise `sqlite3.Error`."""

    def __init__(self, connection: sqlite3.Connection, path: Path, max_bytes: int) -> None:
        self.connection = connection
        self.path = path
        self.max_bytes = max_bytes
        self._segment: int | None = None
        self._segment_bytes = 0
        # What was written since the file's size was looked at: more than it can have grown by.
        self._unseen_bytes = max_bytes

    @classmethod
    def open(cls, folder: Path, max_bytes: int) -> Store:
        """The journal of a folder, made where there is none.

        Raises `CorruptError` for a file that cannot be understood, `NewerError` for one of a later version,
        and `sqlite3.Error` or `OSError` where the folder cannot be used.
        """
        made_private(folder)
        path = folder / FILE
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            prepare(connection)
        except sqlite3.Error as error:
            connection.close()
            if is_corrupt(error):
                raise CorruptError(str(error)) from error
            raise
        except NewerError:
            connection.close()
            raise
        return cls(connection, path, max_bytes)

    def close(self) -> None:
        """The file is closed, its log folded in."""
        self.connection.close()

    # --- writing ---

    def write(self, batch: Written, states: Mapping[str, bytes | None], now_s: float) -> None:
        """Rows, the changes that people are shown, and the latest states by name are committed together.

        A state of None is kept no longer.
        """
        with self._transaction() as run:
            size = self._write_rows(run, batch, now_s) if batch.rows else 0
            if batch.changes:
                run.executemany("INSERT INTO changes (at_s, body) VALUES (?, ?)", batch.changes)
            _keep(run, states)
        self._segment_bytes += size
        self._unseen_bytes += COMMIT_BYTES + size + sum(len(state or b"") for state in states.values())

    def _write_rows(self, run: sqlite3.Connection, batch: Written, now_s: float) -> int:
        """The bytes that the rows take; they belong to the present segment, which the first ones begin."""
        if self._segment is None:
            new = run.execute("INSERT INTO segments (first_s, last_s) VALUES (?, ?)", (now_s, now_s))
            self._segment, self._segment_bytes = new.lastrowid, 0
        body = packed(batch.body)
        number = run.execute(
            "INSERT INTO batches (segment, offset_s, rows, body) VALUES (?, ?, ?, ?)",
            (self._segment, batch.offset_s, batch.rows, body),
        ).lastrowid
        if batch.requests:
            run.execute("INSERT INTO names VALUES (?, ?)", (number, digests(batch.requests)))
        return len(body)

    def score(self, scored: Scored, states: Mapping[str, bytes]) -> Scored | None:
        """Keeps feedback, and these states with it; the one of the same answer and source before it, if any.

        With one before it nothing is kept.
        """
        values = (
            scored.request_id, scored.tenant, scored.source, scored.started_s, scored.member, scored.score,
            scored.at_s,
        )  # fmt: skip
        with self._transaction() as run:
            found = run.execute(
                "SELECT request_id, source, member, tenant, score, at_s, started_s FROM feedback"
                " WHERE request_id = ? AND source = ? AND tenant = ? AND started_s IN (?, 0.0)",
                (scored.request_id, scored.source, scored.tenant, scored.started_s),
            ).fetchone()
            if found is None:
                run.execute("INSERT INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?)", values)
                _keep(run, states)
        self._unseen_bytes += COMMIT_BYTES
        return None if found is None else scored_of(found)

    # --- segments and room ---

    @property
    def segment_full(self) -> bool:
        """Whether the segment takes its share of the cap."""
        return self._segment_bytes >= self.max_bytes * SEGMENT_SHARE

    def seal(self, now_s: float) -> None:
        """The segment is over: its batches become one, and the next write begins another."""
        segment, self._segment = self._segment, None
        if segment is None:
            return
        with self._transaction() as run:
            found = run.execute(
                "SELECT id, offset_s, rows FROM batches WHERE segment = ? ORDER BY id", (segment,)
            ).fetchall()
            if len(found) > 1:
                _join(run, segment, found)
            # Of a process that died it is when the segment began.
            run.execute("UPDATE segments SET sealed = 1, last_s = ? WHERE id = ?", (now_s, segment))

    def over_full(self) -> bool:
        """Whether the file is larger than it may be; it is looked at only once enough was written."""
        if self._unseen_bytes < self.max_bytes * LOOK_SHARE:
            return False
        self._unseen_bytes = 0
        return self.size_bytes() > self.max_bytes

    def size_bytes(self) -> int:
        """What the file and its log take on disk."""
        return sum(_size(Path(f"{self.path}{ending}")) for ending in ("", "-wal", "-shm"))

    def make_room(self, oldest_s: float) -> None:
        """What is older than `oldest_s` is gone, and the oldest segments until the cap holds again."""
        with self._transaction() as run:
            _forget(run, "last_s < ? AND sealed", (oldest_s,))
            run.execute("DELETE FROM changes WHERE at_s < ?", (oldest_s,))
            run.execute("DELETE FROM feedback WHERE at_s < ?", (oldest_s - FEEDBACK_KEPT_S,))
        if self.size_bytes() > self.max_bytes:
            self._fold()
        if self._used_bytes() > self.max_bytes * KEPT_SHARE:
            self._limit_feedback()
        while self._used_bytes() > self.max_bytes * KEPT_SHARE and self._forget_oldest():
            pass
        if scalar(self.connection, "PRAGMA freelist_count"):
            # As a script, for it takes a step per page, and `execute` only the first.
            self.connection.executescript("PRAGMA incremental_vacuum")
            self._fold()

    def _limit_feedback(self) -> None:
        """The oldest feedback beyond its share is gone."""
        self.connection.execute(
            "DELETE FROM feedback WHERE at_s <= (SELECT max(at_s) FROM"  # noqa: S608 - a constant
            f" (SELECT at_s, sum({_FEEDBACK_ROW}) OVER (ORDER BY at_s DESC) AS held FROM feedback)"
            " WHERE held > ?)",
            (self.max_bytes * FEEDBACK_SHARE,),
        )

    def _fold(self) -> None:
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _used_bytes(self) -> int:
        pages = scalar(self.connection, "PRAGMA page_count") - scalar(
            self.connection, "PRAGMA freelist_count"
        )
        return pages * scalar(self.connection, "PRAGMA page_size")

    def _forget_oldest(self) -> bool:
        """Whether a segment other than the present one could go, or else the oldest changes and scores."""
        with self._transaction() as run:
            oldest = run.execute(
                "SELECT min(id) FROM segments WHERE id IS NOT ?", (self._segment,)
            ).fetchone()[0]
            if oldest is not None:
                _forget(run, "id = ?", (oldest,))
                return True
            gone = run.execute(
                "DELETE FROM changes WHERE id IN (SELECT id FROM changes ORDER BY id LIMIT 100)"
            ).rowcount
            return gone > 0

    def _transaction(self) -> Transaction:
        return Transaction(self.connection)


def _join(run: sqlite3.Connection, segment: int, found: Sequence[tuple[int, float, int]]) -> None:
    """The batches (id, offset, rows) of a segment are one: small bodies compress badly, a large one well."""
    first, rows, offset_s = found[0][0], sum(each[2] for each in found), found[-1][1]
    body = joined((_value(run, "body FROM batches WHERE id", each[0]) for each in found), rows)
    names = [_value(run, "digests FROM names WHERE batch", each[0]) for each in found]
    others = "SELECT id FROM batches WHERE segment = ? AND id <> ?"
    run.execute(f"DELETE FROM names WHERE batch IN ({others})", (segment, first))  # noqa: S608
    run.execute("DELETE FROM batches WHERE segment = ? AND id <> ?", (segment, first))
    run.execute("INSERT OR REPLACE INTO names VALUES (?, ?)", (first, b"".join(names)))
    run.execute(
        "UPDATE batches SET offset_s = ?, rows = ?, body = ? WHERE id = ?", (offset_s, rows, body, first)
    )


def _value(run: sqlite3.Connection, which: str, number: int) -> bytes:
    """One blob of a row; empty where there is no such row."""
    found = run.execute(f"SELECT {which} = ?", (number,)).fetchone()
    return b"" if found is None else found[0]


def _keep(run: sqlite3.Connection, states: Mapping[str, bytes | None]) -> None:
    for name, state in states.items():
        if state is None:
            run.execute("DELETE FROM kept WHERE name = ?", (name,))
        else:
            run.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (name, state))


def _forget(run: sqlite3.Connection, which: str, values: tuple[float | int, ...]) -> None:
    segments = f"SELECT id FROM segments WHERE {which}"  # noqa: S608 - one of two conditions written above
    batches = f"SELECT id FROM batches WHERE segment IN ({segments})"  # noqa: S608
    run.execute(f"DELETE FROM names WHERE batch IN ({batches})", values)  # noqa: S608
    run.execute(f"DELETE FROM batches WHERE segment IN ({segments})", values)  # noqa: S608
    run.execute(f"DELETE FROM segments WHERE {which}", values)  # noqa: S608


def scored_of(row: Sequence[object]) -> Scored:
    """Feedback from the columns request_id, source, member, tenant, score, at_s, started_s."""
    names = ("request_id", "source", "member", "tenant", "score", "at_s", "started_s")
    return Scored(**dict(zip(names, row, strict=True)))  # type: ignore[arg-type]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
