"""What one commit takes: encoded rows, the requests that they are about, and changes for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from loadwise.logs import get_logger
from loadwise.telemetry.journal import lean
from loadwise.telemetry.journal.bodies import array_of
from loadwise.telemetry.journal.changes import CHANGING, changes_of
from loadwise.telemetry.journal.events import Event
from loadwise.telemetry.journal.records import Record, request_id_of

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Written:
    """Committed whole, or not at all; `offset_s` leads from the rows' clock to the wall's.

    `body` is an array of `rows` rows; `changes` are wall times with encoded changes; `lost` rows could not be
    encoded.
    """

    body: bytes
    rows: int
    requests: frozenset[str]
    changes: Sequence[tuple[float, bytes]]
    offset_s: float
    lost: int


def written(happened: Iterable[Event], rows: Sequence[Record], offset_s: float) -> Written:
    """The events' rows and changes, as they go to disk."""
    try:
        body, lost = lean.encoded(rows), 0
    except (TypeError, ValueError, OverflowError):
        body, lost = _one_by_one(rows)
    return Written(
        body,
        len(rows) - lost,
        frozenset([name for row in rows if (name := request_id_of(row))]),
        [
            (change.at_s, msgspec.msgpack.encode(change))
            for event in happened
            if isinstance(event, CHANGING)
            for change in changes_of(event, offset_s)
        ],
        offset_s,
        lost,
    )


def _one_by_one(rows: Sequence[Record]) -> tuple[bytes, int]:
    """The body of all rows that can be encoded, and how many cannot."""
    arrays = [body for row in rows if (body := _encoded(row)) is not None]
    return array_of([array[1:] for array in arrays]), len(rows) - len(arrays)


def _encoded(row: Record) -> bytes | None:
    """An array of the one row."""
    try:
        return lean.encoded([row])
    except (TypeError, ValueError, OverflowError) as error:
        # A client's number beyond 64 bits, for example: one row is lost, not the journal.
        log.warning("journal_row_lost", kind=type(row).__name__, reason=str(error))
        return None
