"""Reads a journal, also one that is being written: segments of rows in order, and the rows of a request."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from loadwise.errors import LoadwiseError
from loadwise.telemetry.journal import lean, records
from loadwise.telemetry.journal.bodies import digest, holds
from loadwise.telemetry.journal.changes import Change
from loadwise.telemetry.journal.records import Record
from loadwise.telemetry.journal.schema import READABLE, VERSION
from loadwise.telemetry.journal.store import FILE, Scored, scored_of

_CHANGE: Final = msgspec.msgpack.Decoder(Change)


class UnreadableError(LoadwiseError):
    """There is no journal there, or none that this version can read."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one segment; `offset_s` leads from their monotonic clock to the wall's.

    `damaged` says why the rows could not be read; the rest of the segment rests on them.
    """

    segment: int
    offset_s: float
    rows: Sequence[Record]
    damaged: str | None = None


def journal_file(path: Path) -> Path:
    """The journal's file, given itself, its folder or the state folder of a server or of one engine."""
    for found in (path, path / FILE, path / "journal" / FILE):
        if found.is_file():
            return found
    # An engine that loadwise runs in has one of its own, named after where it listens.
    inside = sorted([*path.glob(f"inside/*/journal/{FILE}"), *path.glob(f"*/{FILE}")])
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise UnreadableError(
            f"There are journals of several engines under {path}. Name one: {', '.join(map(str, inside))}."
        )
    raise UnreadableError(
        f"There is no journal at {path}. Name the file {FILE}, its folder, or a server's state_dir."
    )


class Reader:
    """A journal opened for reading only; close it, or use it with `with`."""

    def __init__(self, path: Path) -> None:
        self.path = journal_file(path)
        try:
            self._connection = _connected(self.path)
            self._version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            self._connection.create_function("holds", 2, holds, deterministic=True)
        except sqlite3.Error as error:
            raise UnreadableError(f"{self.path} cannot be read: {error}.") from error
        self._started = "started_s" if self._version > 1 else "0.0"

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The file is closed."""
        self._connection.close()

    def batches(self, segment: int | None = None) -> Iterator[Batch]:
        """All batches in order, or those of one segment."""
        which = "" if segment is None else " WHERE segment = ?"
        found = self._rows(
            f"SELECT segment, offset_s, body FROM batches{which} ORDER BY id",  # noqa: S608
            () if segment is None else (segment,),
        )
        for number, offset_s, body in found:
            yield _batch(number, offset_s, body)

    def latest(self) -> Iterator[Batch]:
        """All batches, newest first."""
        for number, offset_s, body in self._rows(
            "SELECT segment, offset_s, body FROM batches ORDER BY id DESC"
        ):
            yield _batch(number, offset_s, body)

    def rows_of(self, request_id: str) -> list[Batch]:
        """The batches with rows of a request, oldest first."""
        if self._version < 3:
            about = "requests JOIN batches ON batches.id = requests.batch WHERE request_id = ?"
            wanted: object = request_id
        else:
            # The digests are looked through first, so that no other batch's body is read.
            about = "names CROSS JOIN batches ON batches.id = names.batch WHERE holds(digests, ?)"
            wanted = digest(request_id)
        rows = self._rows(
            f"SELECT segment, offset_s, body FROM {about} ORDER BY batches.id",  # noqa: S608
            (wanted,),
        )
        return [batch for batch in (_batch(*row) for row in rows) if _about(batch, request_id)]

    def changes(self, since_s: float = 0.0) -> list[Change]:
        """What changed since a wall time, oldest first."""
        found = self._rows("SELECT body FROM changes WHERE at_s >= ? ORDER BY id", (since_s,))
        return [_CHANGE.decode(body) for (body,) in found]

    def kept(self, name: str) -> bytes | None:
        """The latest state that was kept by a name; None where there is none."""
        return next((body for (body,) in self._rows("SELECT body FROM kept WHERE name = ?", (name,))), None)

    def kept_under(self, prefix: str) -> dict[str, bytes]:
        """The latest states whose names begin with `prefix`."""
        found = self._rows("SELECT name, body FROM kept WHERE substr(name, 1, ?) = ?", (len(prefix), prefix))
        return dict(found)

    def feedback(self, request_id: str | None = None) -> list[Scored]:
        """All feedback by time, or that of one request."""
        which = "" if request_id is None else " WHERE request_id = ?"
        found = self._rows(
            f"SELECT request_id, source, member, tenant, score, at_s, {self._started} FROM feedback{which}"  # noqa: S608
            " ORDER BY at_s, request_id, source",
            () if request_id is None else (request_id,),
        )
        return [scored_of(row) for row in found]

    def _rows(self, sql: str, values: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        try:
            with closing(self._connection.execute(sql, values)) as cursor:
                yield from cursor
        except sqlite3.Error as error:
            raise UnreadableError(f"{self.path} cannot be read: {error}.") from error


def _connected(path: Path) -> sqlite3.Connection:
    where = f"file:{quote(str(path.absolute()))}?mode=ro"
    connection = sqlite3.connect(where, uri=True, isolation_level=None, check_same_thread=False)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in READABLE:
        connection.close()
        raise UnreadableError(f"{path} has format {version}; this version reads format {VERSION}.")
    return connection


def _about(batch: Batch, request_id: str) -> bool:
    """Whether a row is about the request, as far as its rows can be read."""
    return bool(batch.damaged) or any(records.request_id_of(row) == request_id for row in batch.rows)


def _batch(segment: int, offset_s: float, body: bytes) -> Batch:
    try:
        return Batch(segment, offset_s, lean.decoded(zlib.decompress(body)))
    except (zlib.error, msgspec.MsgspecError) as error:
        return Batch(segment, offset_s, (), damaged=str(error))
