"""What one commit takes: encoded rows, the requests that they are about, and changes for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from loadwise.logs import get_logger
from loadwise.telemetry.journal import lean, records
from loadwise.telemetry.journal.changes import changes_of
from loadwise.telemetry.journal.events import Event

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Written:
    """Committed whole, or not at all; `offset_s` leads from the rows' clock to the wall's.

    `changes` are wall times with encoded changes; `lost` rows could not be encoded.
    """

    rows: Sequence[bytes]
    requests: frozenset[str]
    changes: Sequence[tuple[float, bytes]]
    offset_s: float
    lost: int


def written(happened: Iterable[Event], rows: Sequence[records.Record], offset_s: float) -> Written:
    """The events' rows and changes, as they go to disk."""
    encoded = [body for row in rows if (body := _encoded(row)) is not None]
    return Written(
        encoded,
        frozenset(name for row in rows if (name := records.request_id_of(row))),
        [
            (change.at_s, msgspec.msgpack.encode(change))
            for event in happened
            for change in changes_of(event, offset_s)
        ],
        offset_s,
        len(rows) - len(encoded),
    )


def _encoded(row: records.Record) -> bytes | None:
    try:
        return lean.encoded(row)
    except (TypeError, ValueError, OverflowError) as error:
        # A client's number beyond 64 bits, for example: one row is lost, not the journal.
        log.warning("journal_row_lost", kind=type(row).__name__, reason=str(error))
        return None
