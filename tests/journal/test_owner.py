"""Two servers on one state folder: one writes the journal, the other says what is the matter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from loadwise.telemetry.journal.journal import Journal
from loadwise.telemetry.journal.reader import Reader
from loadwise.telemetry.journal.replay import replay
from loadwise.testing import FakeClock

HOLD = """
import sys
from pathlib import Path
from loadwise.telemetry.journal.owner import Owner
owner = Owner(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
"""


async def test_the_second_serves_on_says_who_writes_and_forgets_nothing_of_the_first(make):
    first = await make()
    await first.busy(60)
    second = await make()
    await second.busy(40)
    told = second.chronicle.as_json()
    assert "another server (process " in told["fault"]
    assert "state_dir" in told["fault"]
    await second.made.optimizer.cycle.tune()
    assert second.made.optimizer.get_optimization_status()["system_status"] == "degraded"
    await first.busy(60)
    found = await first.replayed()
    assert found.exact
    assert not found.gaps
    assert first.chronicle.as_json()["fault"] is None
    assert not list(first.folder.glob("*.corrupt-*"))


async def test_the_second_takes_over_when_the_first_has_ended(make):
    first = await make()
    first.answer()
    second = await make()
    for _ in range(3):
        second.answer()
    await first.close()
    second.clock.advance(10.0)
    found = await second.replayed()
    assert second.chronicle.as_json()["fault"] is None
    assert found.exact
    assert found.decisions == 4
    assert found.dropped == 0


def test_a_killed_writer_leaves_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    clock = FakeClock()
    journal = Journal(tmp_path, clock)
    try:
        journal.open()
        assert f"process {other.pid}" in (journal.fault or "")
        assert not (tmp_path / "journal.sqlite3").exists()
        other.kill()
        other.communicate(timeout=30)
        clock.advance(10.0)
        journal.flush()
        assert journal.fault is None
    finally:
        journal.close()
    with Reader(tmp_path) as reader:
        assert replay(reader.batches()).exact


async def test_a_damaged_file_is_set_aside_once_though_two_servers_find_it(make):
    house = await make()
    await house.busy(50)
    await house.close()
    file = house.folder / "journal.sqlite3"
    file.write_bytes(b"no database" * 1000)
    first, second = await make(), await make()
    first.answer()
    first.journal.flush()
    second.clock.advance(10.0)
    second.answer()
    aside = list(house.folder.glob("*.corrupt-*"))
    assert [path.read_bytes() for path in aside] == [b"no database" * 1000]
    assert (first.journal.set_aside is None, second.journal.set_aside) == (False, None)
    assert (await first.replayed()).decisions == 1
