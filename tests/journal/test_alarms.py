"""A journal replayed through the alert rules: what its time gave cause for, and no more than that."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from loadwise.cli.application import app
from loadwise.decision.facts import Ending, Policy
from loadwise.telemetry.journal.alarms import Alarms, alarms
from loadwise.telemetry.journal.reader import Reader

QUIET = {"block_share": 0.0, "conversation_share": 0.0}


async def pass_time(house: Any, seconds: int, ending: Ending = Ending.SUCCEEDED, **facts: object) -> None:
    """A request a second, and a look of the loop."""
    for _ in range(seconds):
        house.clock.advance(1.0)
        house.end(house.dispatch(), ending, **{"total_s": 0.3, "output_tokens": 20, **facts})
        await house.made.optimizer.cycle.probe()


def found(house: Any, policy: Policy | None = None) -> Alarms:
    house.journal.flush()
    with Reader(house.folder) as reader:
        return alarms(reader.batches(), policy, reader.changes())


async def test_a_healthy_time_gives_no_cause(make) -> None:
    house = await make(experiment=QUIET)
    await pass_time(house, 300)
    seen = found(house)
    assert seen.fired == []
    assert seen.looks >= 300
    assert seen.as_json()["weeks"] > 0.0


async def test_errors_are_told_when_they_came_and_when_they_ended(make) -> None:
    house = await make(experiment=QUIET)
    await pass_time(house, 60)
    await pass_time(house, 60, Ending.FAILED, status=500, output_tokens=0)
    await pass_time(house, 300)
    shown = {row["alert"]: row for row in found(house).as_json()["alerts"]}
    assert shown["high_error_rate"]["began"] < shown["high_error_rate"]["ended"]
    assert shown["high_error_rate"]["severity"] == "ticket"


async def test_other_thresholds_would_have_told_otherwise(make) -> None:
    house = await make(experiment=QUIET)
    await pass_time(house, 300)
    strict = found(house, Policy(latency_alert_ms=100.0))
    assert [alert.name for alert in strict.fired] == ["excessive_latency"]


async def test_a_restart_between_is_no_page(make) -> None:
    house = await make(experiment=QUIET)
    await pass_time(house, 60)
    await house.close()
    house.clock.advance(3600.0)
    again = await make(clock=house.clock, experiment=QUIET)
    await pass_time(again, 60)
    assert found(again).pages == []


async def test_the_command_shows_them(make) -> None:
    house = await make(experiment=QUIET)
    await pass_time(house, 60)
    house.journal.flush()
    done = CliRunner().invoke(app, ["replay", str(house.folder), "--alerts"])
    assert done.exit_code == 0, done.output
    assert "0 pages and 0 tickets" in done.output
