"""A disk that fails in the middle of a batch: nothing is written twice, nothing is lost uncounted."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from loadwise.ports import Configure
from loadwise.telemetry.journal import events, records
from loadwise.telemetry.journal.events import Event
from loadwise.telemetry.journal.journal import JournalError
from loadwise.telemetry.journal.reader import Reader
from loadwise.telemetry.journal.store import Store

COUNTED = (events.Chose, events.Ended, events.Refused, events.Stepped, events.Judged)
ROWS = {
    records.Decided: events.Chose,
    records.Ended: events.Ended,
    records.TurnedAway: events.Refused,
    records.Step: events.Stepped,
    records.KeptOut: events.Judged,
}


def fails_at(table: str) -> Any:
    """A question after which the open file takes no row of that table, until it is opened anew."""

    def spoil(store: Store) -> None:
        store.connection.execute(
            f"CREATE TEMP TRIGGER IF NOT EXISTS no_{table} BEFORE INSERT ON main.{table}"
            " BEGIN SELECT RAISE(ABORT, 'the disk says no'); END"
        )

    return spoil


def heard(house: Any) -> Counter[type]:
    """Counts every event from now on, before the journal takes it."""
    counted: Counter[type] = Counter()
    ensemble, take = house.made.optimizer.ensemble_manager, house.journal.take

    def both(event: Event) -> None:
        if isinstance(event, COUNTED):
            counted[type(event)] += 1
        take(event)

    ensemble.witness = both
    return counted


def on_disk(house: Any) -> tuple[Counter[type], int]:
    """Rows by the event that they tell of, and changes."""
    with Reader(house.folder) as reader:
        rows = [row for batch in reader.batches() for row in batch.rows]
        return Counter(ROWS[type(row)] for row in rows if type(row) in ROWS), len(reader.changes())


@pytest.mark.parametrize("batch", [1, 3, 2000])
@pytest.mark.parametrize("table", ["changes", "batches", "names", "kept"])
async def test_every_event_is_written_once_whichever_table_fails(make, monkeypatch, caplog, table, batch):
    monkeypatch.setattr("loadwise.telemetry.journal.journal.BATCH", batch)
    house = await make()
    house.journal.flush()
    before, changes = on_disk(house)
    counted = heard(house)
    for turn in range(2):
        house.journal.ask(fails_at(table))
        await house.busy(30)
        await house.made.control.apply(Configure(changes={"hysteresis": 0.06 + 0.01 * turn}))
        with suppress(JournalError):
            house.journal.flush()
        house.clock.advance(10.0)
        await house.busy(10)
    house.journal.flush()
    assert "the disk says no" in caplog.text
    found, noted = on_disk(house)
    assert found - before == counted
    assert noted == len(house.chronicle.changes())
    assert noted >= changes
    assert house.journal.dropped == house.chronicle.as_json()["dropped"] == 0
    assert (await house.replayed()).exact
