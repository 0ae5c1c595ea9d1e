"""What outlives a restart: performance history, changes with their reasons, feedback."""

from __future__ import annotations

import sqlite3

import pytest

from loadwise.decision.beliefs import Health
from loadwise.decision.facts import Ending
from loadwise.ports import Configure, Feedback


async def test_the_performance_history_survives_a_restart(make):
    house = await make(metrics_history_size=50)
    for _ in range(60):
        house.answer()
    before = house.made.optimizer.export_performance_report()
    await house.close()
    again = await make(metrics_history_size=50)
    after = again.made.optimizer.export_performance_report()
    assert len(before["performance_history"]) == 50
    assert after["performance_history"] == before["performance_history"]
    assert after["grade"] == before["grade"] is not None
    assert after["success_rate"] == before["success_rate"]


async def test_refused_requests_are_in_the_history_after_a_restart(make):
    house = await make()
    house.answer()
    house.made.director.refused("shed", "auto", 503)
    before = house.made.optimizer.export_performance_report()
    await house.close()
    after = (await make()).made.optimizer.export_performance_report()
    assert [entry["ending"] for entry in after["performance_history"]] == ["succeeded", "refused"]
    assert after["performance_history"] == before["performance_history"]
    assert (after["refused_requests"], after["success_rate"]) == (1, 0.5)


async def test_changes_survive_with_their_reasons(make):
    house = await make()
    await house.busy(60)
    house.host.cpu = 100.0
    await house.made.control.apply(Configure(changes={"load_threshold_high": 0.7}))
    for _ in range(6):
        dispatch = house.dispatch(model="fast")
        house.end(dispatch, Ending.FAILED, status=500)
    before = house.chronicle.changes()
    kinds = {change["kind"] for change in before}
    assert {"strategy", "configuration", "member"} <= kinds
    configured = next(change for change in before if change["kind"] == "configuration")
    assert configured["undo_body"] == {"load_threshold_high": 0.8}
    assert configured["automatic"] is False
    removed = next(change for change in before if change["kind"] == "member")
    assert (removed["subject"], removed["after"], removed["reason"]) == ("fast", "out", "faults_in_a_row")
    await house.close()
    again = await make()
    assert again.chronicle.changes()[: len(before)] == before


async def test_the_last_hours_changes_are_told_apart_from_older_ones(make):
    house = await make()
    await house.made.control.apply(Configure(changes={"hysteresis": 0.06}))
    house.clock.advance(4000.0)
    await house.made.control.apply(Configure(changes={"hysteresis": 0.07}))
    recent = house.chronicle.changes(within_s=3600.0)
    assert [change["after"] for change in recent] == ["hysteresis=0.07"]
    assert house.made.optimizer.get_optimization_status()["changes_last_hour"] == recent


async def test_applied_configurations_survive_with_what_was_measured_under_them(make):
    house = await make()
    for _ in range(80):
        house.answer()
    await house.made.control.apply(Configure(changes={"hysteresis": 0.06}))
    for _ in range(30):
        house.answer()
    before = house.made.optimizer.configurations.as_json()["versions"]
    await house.close()
    again = await make()
    after = again.made.optimizer.configurations.as_json()["versions"]
    assert [version["version"] for version in after] == ["v1", "v2"]
    for told in ("good", "pinned", "measured", "active"):
        assert [version[told] for version in after] == [version[told] for version in before]
    assert after[0]["measured"]["requests"] > 50


async def test_a_regression_after_a_restart_still_finds_its_way_back(make):
    house = await make(experiment={"block_share": 0.0, "conversation_share": 0.0})
    for _ in range(80):
        house.answer()
    await house.made.control.apply(Configure(changes={"hysteresis": 0.06}))
    await house.close()
    again = await make(experiment={"block_share": 0.0, "conversation_share": 0.0})
    for _ in range(80):
        again.end(again.dispatch(), time_to_first_token_s=9.0, total_s=10.0)
    await again.made.optimizer.cycle.tune()
    assert again.made.optimizer.config.hysteresis == 0.05
    reverted = again.chronicle.changes()[-1]
    assert (reverted["kind"], reverted["automatic"], reverted["reason"]) == (
        "configuration", True, "regression",
    )  # fmt: skip


async def test_other_settings_in_the_file_begin_a_history_of_their_own(make):
    house = await make()
    house.answer()
    await house.made.control.apply(Configure(changes={"hysteresis": 0.06}))
    await house.close()
    again = await make(hysteresis=0.1)
    assert [v["version"] for v in again.made.optimizer.configurations.as_json()["versions"]] == ["v1"]


async def test_feedback_survives_a_restart(make):
    house = await make()
    dispatch = house.answer()
    given = Feedback(request_id=dispatch.request.request_id, score=0.0, source="judge")
    told = await house.made.control.apply(given)
    await house.close()
    again = await make(clock=house.clock)
    belief = again.made.optimizer.ensemble_manager.beliefs[dispatch.member_id]
    assert belief.quality == pytest.approx(told["quality"])
    repeated = await again.made.control.apply(given)
    assert repeated["status"] == "already_recorded"


def speeds(house):
    """Seconds per token on the member's device with some work, as believed."""
    return {name: b.output_fit.at(10.0) for name, b in house.made.optimizer.ensemble_manager.beliefs.items()}


@pytest.mark.parametrize("killed", [False, True])
async def test_what_is_believed_of_members_survives_a_restart_and_a_kill(make, killed):
    house = await make()
    unmeasured = speeds(house)
    await house.busy(400)
    house.clock.advance(11.0)
    await house.made.optimizer.cycle.probe()
    learned, beliefs = speeds(house), house.made.optimizer.ensemble_manager.beliefs
    folder = house.left_behind() if killed else house.folder.parent
    if not killed:
        await house.close()
    house.clock.advance(5.0)
    again = await make(clock=house.clock, folder=folder)
    after = again.made.optimizer.ensemble_manager.beliefs
    for name, belief in beliefs.items():
        assert after[name].outcomes == belief.outcomes > 0
        far = abs(unmeasured[name] - learned[name])
        assert abs(speeds(again)[name] - learned[name]) < max(0.3 * far, 0.1 * learned[name])
        assert after[name].health is Health.HEALTHY
    await again.busy(50)
    assert (await again.replayed()).exact


async def test_a_member_that_is_another_now_and_one_that_cannot_be_read_begin_anew(make):
    house = await make()
    await house.busy(200)
    house.clock.advance(11.0)
    await house.made.optimizer.cycle.probe()
    folder = house.left_behind()
    with sqlite3.connect(folder / "journal" / "journal.sqlite3") as file:
        file.execute("INSERT OR REPLACE INTO kept VALUES ('belief/fast', X'00')")
    again = await make(clock=house.clock, folder=folder)
    beliefs = again.made.optimizer.ensemble_manager.beliefs
    assert beliefs["fast"].outcomes == 0
    assert "beliefs of fast" in again.chronicle.as_json()["begun_anew"]
    assert beliefs["accurate"].outcomes > 0
    other = await make(clock=house.clock, folder=again.left_behind(), replicas=2)
    assert other.made.optimizer.ensemble_manager.beliefs["accurate"].outcomes == 0
