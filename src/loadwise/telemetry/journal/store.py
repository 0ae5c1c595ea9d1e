"""The journal's file: SQLite in WAL mode, written by one thread; a corrupt file is set aside, never fatal.

Rows come in batches: one compressed blob per commit, an index from request ids to batches beside it.
Batches belong to a segment; each segment stands on its own, so that the oldest can go when room runs out.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from loadwise.telemetry.journal.batches import Written
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
# Feedback takes at most this share of the cap: who gives it must not drive out what was decided.
FEEDBACK_SHARE: Final = 1 / 4
# What a row of it takes beside its names, and these twice: in the table and around it.
_FEEDBACK_ROW: Final = "2 * length(request_id || source || member || tenant) + 64"
# A feedback row outlives its request's time for feedback; older ones no longer count.
FEEDBACK_KEPT_S: Final = 40 * 86_400.0
_RAW: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])


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


def packed(rows: Sequence[bytes] | Sequence[msgspec.Raw], level: int = 1) -> bytes:
    """Encoded rows as one compressed body."""
    return zlib.compress(msgspec.msgpack.encode([msgspec.Raw(row) for row in rows]), level)


def unpacked(body: bytes) -> list[msgspec.Raw]:
    """The encoded rows of a body; `zlib.error` or `msgspec.DecodeError` for a damaged one."""
    return _RAW.decode(zlib.decompress(body))


class Store:
    """The open file; it belongs to the writer's thread. Every method may raise `sqlite3.Error`."""

    def __init__(self, connection: sqlite3.Connection, path: Path, max_bytes: int) -> None:
        self.connection = connection
        self.path = path
        self.max_bytes = max_bytes
        self._segment: int | None = None
        self._segment_bytes = 0

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

    def write(self, batch: Written, now_s: float) -> None:
        """The rows and the changes that people are shown are committed together."""
        body = packed(batch.rows)
        with self._transaction() as run:
            if self._segment is None:
                new = run.execute("INSERT INTO segments (first_s, last_s) VALUES (?, ?)", (now_s, now_s))
                self._segment, self._segment_bytes = new.lastrowid, 0
            number = run.execute(
                "INSERT INTO batches (segment, offset_s, rows, body) VALUES (?, ?, ?, ?)",
                (self._segment, batch.offset_s, len(batch.rows), body),
            ).lastrowid
            run.executemany(
                "INSERT OR IGNORE INTO requests VALUES (?, ?)", [(name, number) for name in batch.requests]
            )
            run.execute("UPDATE segments SET last_s = ? WHERE id = ?", (now_s, self._segment))
            run.executemany("INSERT INTO changes (at_s, body) VALUES (?, ?)", batch.changes)
        self._segment_bytes += len(body)

    def keep(self, states: Mapping[str, bytes | None]) -> None:
        """The latest states are kept by name, all of them or none; None: no longer."""
        gone = [(name,) for name, body in states.items() if body is None]
        kept = [(name, body) for name, body in states.items() if body is not None]
        with self._transaction() as run:
            run.executemany("DELETE FROM kept WHERE name = ?", gone)
            run.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", kept)

    def score(self, scored: Scored) -> Scored | None:
        """Keeps feedback; the one of the same answer and source that was there before, if any."""
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
        return None if found is None else scored_of(found)

    # --- segments and room ---

    @property
    def segment_full(self) -> bool:
        """Whether the segment takes its share of the cap."""
        return self._segment_bytes >= self.max_bytes * SEGMENT_SHARE

    def seal(self) -> None:
        """The segment is over: its batches become one, and the next write begins another."""
        segment, self._segment = self._segment, None
        if segment is not None:
            self._seal(segment)

    def _seal(self, segment: int) -> None:
        with self._transaction() as run:
            found = run.execute(
                "SELECT id, offset_s, rows, body FROM batches WHERE segment = ? ORDER BY id", (segment,)
            ).fetchall()
            if len(found) > 1:
                # Many small blobs compress badly, one large one well.
                body = packed([row for batch in found for row in unpacked(batch[3])], 6)
                first = found[0][0]
                run.execute(
                    "UPDATE OR IGNORE requests SET batch = ? WHERE batch IN"
                    " (SELECT id FROM batches WHERE segment = ?)",
                    (first, segment),
                )
                run.execute(
                    "DELETE FROM requests WHERE batch <> ? AND batch IN"
                    " (SELECT id FROM batches WHERE segment = ?)",
                    (first, segment),
                )
                run.execute("DELETE FROM batches WHERE segment = ? AND id <> ?", (segment, first))
                run.execute(
                    "UPDATE batches SET offset_s = ?, rows = ?, body = ? WHERE id = ?",
                    (found[-1][1], sum(batch[2] for batch in found), body, first),
                )
            run.execute("UPDATE segments SET sealed = 1 WHERE id = ?", (segment,))

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


def _forget(run: sqlite3.Connection, which: str, values: tuple[float | int, ...]) -> None:
    segments = f"SELECT id FROM segments WHERE {which}"  # noqa: S608 - one of two conditions written above
    batches = f"SELECT id FROM batches WHERE segment IN ({segments})"  # noqa: S608
    run.execute(f"DELETE FROM requests WHERE batch IN ({batches})", values)  # noqa: S608
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
