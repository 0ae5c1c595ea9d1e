"""The tables of the journal's file, and whether a file is one."""

from __future__ import annotations

import sqlite3
from itertools import groupby
from typing import Final

from loadwise.errors import LoadwiseError
from loadwise.telemetry.journal.bodies import digests

VERSION: Final = 3
# Versions that a reader understands. Since the second, feedback says which answer it was given for; since
# the third, request ids are found by digests beside each batch.
READABLE: Final = frozenset({1, 2, VERSION})
# The key's columns first and in its order: SQLite's quick_check takes any other order for damage.
_FEEDBACK: Final = """
CREATE TABLE feedback (request_id TEXT NOT NULL, tenant TEXT NOT NULL, source TEXT NOT NULL,
                       started_s REAL NOT NULL, member TEXT NOT NULL, score REAL NOT NULL,
                       at_s REAL NOT NULL,
                       PRIMARY KEY (request_id, tenant, source, started_s)) WITHOUT ROWID;
"""
_SCHEMA: Final = """
CREATE TABLE segments (id INTEGER PRIMARY KEY, first_s REAL NOT NULL, last_s REAL NOT NULL,
                       sealed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE batches (id INTEGER PRIMARY KEY, segment INTEGER NOT NULL, offset_s REAL NOT NULL,
                      rows INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX batches_segment ON batches (segment);
CREATE TABLE changes (id INTEGER PRIMARY KEY, at_s REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE kept (name TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
"""
# The digests of the request ids that a batch is about (`bodies.digests`).
_NAMES: Final = "CREATE TABLE names (batch INTEGER PRIMARY KEY, digests BLOB NOT NULL);"
# Feedback of version 1 did not say which of a request id's answers it was given for.
_FROM_1: Final = """
INSERT INTO feedback SELECT request_id, tenant, source, 0.0, member, score, at_s FROM feedback_1;
DROP TABLE feedback_1;
"""
# SQLite's codes for a file that is damaged, or none of its own.
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class CorruptError(sqlite3.DatabaseError):
    """The file is damaged, or no journal."""


class NewerError(LoadwiseError):
    """The file is a journal of a later version, which this one leaves alone."""


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether the file itself is at fault, not the disk or its permissions."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, CorruptError) or (code is not None and code & 0xFF in _CORRUPT)


class Transaction:
    """`with` it: committed whole, or not at all."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._connection.execute("COMMIT")
        elif self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def prepare(connection: sqlite3.Connection) -> None:
    """The file has its tables and is whole.

    Raises `CorruptError` where it is damaged, `NewerError` where a later version wrote it.
    """
    version = scalar(connection, "PRAGMA user_version")
    if version > VERSION:
        raise NewerError(f"it was written by a newer version of loadwise (format {version})")
    if version == 0:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    # A process that dies loses nothing that was committed; a machine that dies, the last moments.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA journal_size_limit = 1048576").fetchall()
    if version == 0:
        connection.executescript(
            f"BEGIN; {_SCHEMA}{_NAMES}{_FEEDBACK} PRAGMA user_version = {VERSION}; COMMIT;"
        )
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise CorruptError(found)
    if version == 1:
        renamed = "ALTER TABLE feedback RENAME TO feedback_1;"
        connection.executescript(f"BEGIN; {renamed}{_FEEDBACK}{_FROM_1} PRAGMA user_version = 2; COMMIT;")
    if version in (1, 2):
        _from_2(connection)
    with Transaction(connection) as run:
        # Segments of a process that died stay as they are: no batch of theirs is lost.
        run.execute("UPDATE segments SET sealed = 1")


def _from_2(connection: sqlite3.Connection) -> None:
    """Request ids of version 2 had a row each, and took as much room as what was decided."""
    with Transaction(connection) as run:
        run.execute(_NAMES)
        found = run.execute("SELECT batch, request_id FROM requests ORDER BY batch")
        for batch, rows in groupby(found, key=lambda row: row[0]):
            run.execute("INSERT INTO names VALUES (?, ?)", (batch, digests(name for _, name in rows)))
        run.execute("DROP TABLE requests")
        run.execute("PRAGMA user_version = 3")


def scalar(connection: sqlite3.Connection, sql: str) -> int:
    """The one number that a query gives."""
    return int(connection.execute(sql).fetchone()[0])
