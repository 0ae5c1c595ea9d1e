"""The journal's file: bounded, private, never fatal; and what was lost is counted."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from loadwise.decision.facts import RequestFacts
from loadwise.telemetry.journal.events import Refused, Stepped
from loadwise.telemetry.journal.journal import Journal, JournalError, Limits
from loadwise.telemetry.journal.reader import Reader
from loadwise.telemetry.journal.replay import replay
from loadwise.telemetry.journal.store import Scored, Store
from loadwise.testing import FakeClock


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


async def test_folder_and_file_are_private(make):
    house = await make()
    house.answer()
    house.journal.flush()
    assert stat.S_IMODE(house.folder.stat().st_mode) == 0o700
    for path in house.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_what_a_full_queue_dropped_is_counted_and_the_rest_is_reproduced(make):
    house = await make(limits=Limits(queue_size=40))
    for _ in range(30):
        # The writer is not asked between: some of these find the queue full.
        await house.busy(20)
    found = await house.replayed()
    assert house.journal.dropped > 0
    assert found.dropped == house.journal.dropped
    assert found.exact
    assert found.decisions > 0
    assert any("events were lost" in gap for gap in found.gaps)


async def test_the_cap_holds_and_the_newest_stays(make):
    cap = 1024**2
    house = await make(limits=Limits(max_bytes=cap))
    for turn in range(20):
        for number in range(3000):
            request = RequestFacts(request_id=f"refused-{turn}-{number}-{house.random.random()}")
            house.journal.take(Refused(request, 429, "queue_full", 1.0, house.clock.monotonic_s()))
        await house.busy(20)
        house.journal.flush()
        assert size_of(house.folder) < 1.25 * cap
    last = house.answer()
    found = await house.replayed()
    assert found.exact
    assert 0 < found.decisions < house.sent
    assert size_of(house.folder) < 1.25 * cap
    with Reader(house.folder) as reader:
        assert reader.rows_of(last.request.request_id)
        assert not reader.rows_of("r1")


async def test_feedback_without_end_takes_no_room_from_decisions(make):
    cap = 1024**2
    house = await make(limits=Limits(max_bytes=cap))
    dispatch = house.answer()
    request_id = dispatch.request.request_id
    began_s = house.clock.wall_s()
    said = [
        Scored(request_id=request_id, source=f"{n:064d}", member="m", tenant="t", score=0.5, at_s=began_s + n)
        for n in range(12_000)
    ]
    house.journal.ask(lambda store: [store.score(scored, {}) for scored in said])
    house.journal.flush()
    # Room that was made is given back to the disk.
    assert size_of(house.folder) < cap
    with Reader(house.folder) as reader:
        assert reader.rows_of(request_id)
        kept = reader.feedback()
    # The newest stay.
    assert 1000 < len(kept) < len(said)
    assert kept == said[-len(kept) :]


async def test_what_is_too_old_is_gone(make):
    house = await make(limits=Limits(max_age_s=3600.0))
    early = house.answer()
    house.journal.flush()
    house.clock.advance(1000.0)
    house.journal.flush()
    house.clock.advance(3000.0)
    late = house.answer()
    house.journal.flush()
    house.clock.advance(700.0)
    house.journal.flush()
    with Reader(house.folder) as reader:
        assert not reader.rows_of(early.request.request_id)
        assert reader.rows_of(late.request.request_id)


@pytest.mark.parametrize("damage", ["garbage", "torn", "middle"])
async def test_a_corrupt_file_is_set_aside_and_the_start_goes_on(make, damage):
    house = await make()
    await house.busy(300)
    await house.close()
    file = house.folder / "journal.sqlite3"
    content = file.read_bytes()
    if damage == "garbage":
        file.write_bytes(os.urandom(len(content)))
    elif damage == "torn":
        file.write_bytes(content[: len(content) // 2 + 100])
    else:
        file.write_bytes(content[:4096] + os.urandom(8192) + content[12288:])
    again = await make()
    again.answer()
    assert (await again.replayed()).exact
    shown = again.chronicle.as_json()
    assert shown["set_aside"] is not None
    assert ".corrupt-" in shown["set_aside"]
    assert Path(shown["set_aside"]).exists()
    assert shown["fault"] is None


async def test_only_the_newest_corrupt_file_is_kept(make):
    for _ in range(3):
        house = await make()
        await house.close()
        (house.folder / "journal.sqlite3").write_bytes(b"no database" * 1000)
        house.clock.advance(2.0)
    await make()
    assert len(list(house.folder.glob("*.corrupt-*"))) == 1


async def test_a_damaged_segment_is_skipped_and_said(make):
    house = await make()
    await house.busy(300)
    await house.close()
    again = await make()
    await again.busy(100)
    await again.close()
    connection = sqlite3.connect(house.folder / "journal.sqlite3", isolation_level=None)
    connection.execute("UPDATE batches SET body = x'00' WHERE segment = (SELECT min(segment) FROM batches)")
    connection.close()
    with Reader(house.folder) as reader:
        found = replay(reader.batches())
    assert found.exact
    assert found.decisions > 50
    assert "went on at the next segment" in found.gaps[0]


def fill(store: Store) -> None:
    """SQLite itself finds no room for another page, until the file is opened anew."""
    store.connection.execute("PRAGMA max_page_count = 1").fetchall()


async def test_a_full_disk_stops_nothing_and_is_said_until_there_is_room(make):
    house = await make()
    house.journal.ask(fill)
    # Time stands still, so that the disk is not tried again meanwhile.
    for number in range(5000):
        request = RequestFacts(request_id=f"{number}-{house.random.random()}")
        house.journal.take(Refused(request, 429, "queue_full", 1.0, house.clock.monotonic_s()))
    with pytest.raises(JournalError, match="disk is full"):
        house.journal.flush()
    assert house.chronicle.as_json()["fault"] == "database or disk is full"
    await house.made.optimizer.cycle.tune()
    status = house.made.optimizer.get_optimization_status()
    assert status["system_status"] == "degraded"
    assert status["loop"]["faults"] == {"journal": "JournalError: database or disk is full"}
    house.clock.advance(10.0)
    house.answer()
    found = await house.replayed()
    assert house.chronicle.as_json()["fault"] is None
    await house.made.optimizer.cycle.tune()
    assert not house.made.optimizer.get_optimization_status()["loop"]["faults"]
    assert found.exact
    assert (found.decisions, found.refusals, found.dropped) == (1, 5000, 0)


async def test_an_event_that_cannot_be_written_costs_itself_alone(make):
    house = await make()
    house.answer()
    house.journal.take(object())
    house.journal.take(Stepped(None, None, None, None, None))
    with pytest.raises(JournalError):
        house.journal.flush()
    house.clock.advance(10.0)
    house.answer()
    found = await house.replayed()
    assert found.exact
    assert found.decisions >= 1
    assert found.dropped > 0


async def test_a_folder_that_others_could_read_is_made_private(make, tmp_path):
    (tmp_path / "journal").mkdir(mode=0o755)
    house = await make()
    assert stat.S_IMODE(house.folder.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
async def test_a_read_only_folder_stops_nothing_and_is_said(make, tmp_path):
    tmp_path.chmod(0o500)
    try:
        house = await make()
        house.answer()
        assert "ermission" in house.chronicle.as_json()["fault"]
    finally:
        tmp_path.chmod(0o700)


async def test_a_file_where_the_folder_should_be_stops_nothing_and_is_said(make, tmp_path):
    (tmp_path / "journal").write_text("not a folder", encoding="utf-8")
    house = await make()
    house.answer()
    assert house.chronicle.as_json()["fault"]
    assert house.made.optimizer.get_optimization_status()["journal"]["fault"]


def test_a_journal_of_a_later_version_is_left_alone(tmp_path):
    journal = Journal(tmp_path, FakeClock())
    journal.open()
    journal.close()
    connection = sqlite3.connect(tmp_path / "journal.sqlite3")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    later = Journal(tmp_path, FakeClock())
    later.open()
    later.close()
    assert "newer version" in (later.fault or "")
    assert not list(tmp_path.glob("*.corrupt-*"))
