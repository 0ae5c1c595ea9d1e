"""Experiments and rollouts go on after a restart, and after a kill in the middle of a block."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loadwise.decision.facts import Ending
from loadwise.decision.improvement import FIRST_LOOK
from loadwise.optimizer.tallies import Measure
from loadwise.ports import Configure

HALF = {"block_share": 0.5, "block_sec": 10.0, "burn_in_sec": 2.0, "conversation_share": 0.0}
# Half of all requests are late here: under a target of 99 % that would end each block.
PATIENT = {"experiment": HALF, "alert_objective_target": 0.1}
TALK = {"block_share": 0.0, "conversation_share": 0.5}
RAMP = {"mode": "ramp", "steps": [0.2, 0.6, 1.0], "step_sec": 60.0, "step_requests": 50}


def experiments(house: Any) -> Any:
    return house.made.optimizer.recorder.experiments


def into_block(house: Any, *, control: bool | None = None) -> None:
    """Time passes until three seconds into the next block (of that kind)."""
    for _ in range(500):
        house.clock.advance(10.0 - house.clock.wall_s() % 10.0)
        if control is None or experiments(house).now()["optimised"] is not control:
            house.clock.advance(3.0)
            return
    raise AssertionError("no such block")


async def serve(house: Any, seconds: int) -> None:
    """Two requests a second, the unoptimised ones too late, and the loop looks on."""
    for _ in range(seconds):
        house.clock.advance(1.0)
        for _ in range(2):
            dispatch = house.dispatch()
            took_s = 30.0 if dispatch.control else 0.2
            house.end(dispatch, total_s=took_s, time_to_first_token_s=took_s / 2, output_tokens=50)
        await house.made.optimizer.cycle.probe()


def alone(house: Any, conversation: str) -> bool:
    """Whether a conversation is left alone."""
    control: bool = house.answer(conversation_id=conversation).control
    return control


async def killed(house: Any, make: Callable[..., Any], **config: object) -> Any:
    """The next process, over what a kill at this moment left behind; time goes on."""
    return await make(clock=house.clock, folder=house.left_behind(), **config)


def kept(folder: Path, name: str, body: bytes | None = None) -> Any:
    connection = sqlite3.connect(folder / "journal" / "journal.sqlite3", isolation_level=None)
    if body is not None:
        connection.execute("UPDATE kept SET body = ? WHERE name = ?", (body, name))
    found = connection.execute("SELECT body FROM kept WHERE name = ?", (name,)).fetchone()
    connection.close()
    return found


class TestBlocks:
    async def test_a_restart_between_blocks_changes_no_figure(self, make) -> None:
        house = await make(experiment=HALF)
        into_block(house)
        await serve(house, 260)
        before = experiments(house).gains()
        assert before.goodput is not None
        again = await killed(house, make, experiment=HALF)
        assert experiments(again).gains() == before
        await house.close()
        third = await make(clock=house.clock, experiment=HALF)
        assert experiments(third).gains() == before

    async def test_evidence_adds_up_over_many_kills_to_what_one_process_would_have(self, make) -> None:
        """Each kill is at a block's beginning, whose burn-in nobody counts: nothing is lost."""
        whole = await make(**PATIENT)
        house = await make(**PATIENT, folder=whole.folder.parent / "killed")
        for each in (whole, house):
            into_block(each)
        for _ in range(3):
            for each in (whole, house):
                each.clock.advance(10.0 - each.clock.wall_s() % 10.0 - 1.0)
                await serve(each, 100)
            house = await killed(house, make, **PATIENT)
        found = experiments(house).gains()
        assert found.goodput is not None
        assert found == experiments(whole).gains()
        assert found.strata > FIRST_LOOK

    async def test_what_was_open_when_the_process_died_widens_the_interval_only(self, make) -> None:
        house = await make(experiment=HALF, refuse_late=False)
        into_block(house)
        await serve(house, 260)
        while not experiments(house).now()["optimised"]:
            await serve(house, 10)
        for _ in range(3):
            house.dispatch()
        # They are still open some blocks later.
        open_yet, house.open = house.open, []
        await serve(house, 30)
        house.open = open_yet
        again = await killed(house, make, experiment=HALF, refuse_late=False)
        for dispatch in list(house.open):
            house.end(dispatch, total_s=0.2, time_to_first_token_s=0.1)
        house.clock.advance(40.0)
        unhurt, hurt = experiments(house).gains(), experiments(again).gains()
        assert unhurt.goodput is not None
        assert hurt.goodput is not None
        assert (unhurt.lost_requests, hurt.lost_requests) == (0, 3)
        assert unhurt.goodput.requests == hurt.goodput.requests
        assert hurt.goodput.low < unhurt.goodput.low
        assert hurt.goodput.low <= unhurt.goodput.value <= hurt.goodput.high
        assert hurt.goodput.value <= unhurt.goodput.value

    async def test_the_rest_of_a_block_counts_again_after_a_burn_in(self, make) -> None:
        house = await make(**PATIENT)
        into_block(house)
        await serve(house, 60)
        into_block(house, control=True)
        house.end(house.dispatch())
        await house.made.optimizer.cycle.probe()
        again = await killed(house, make, **PATIENT)
        counted = lambda: experiments(again).switchback.errors(again.clock.wall_s())[1]  # noqa: E731
        dispatch = again.dispatch()
        assert dispatch.control
        again.end(dispatch)
        assert counted() == 1
        again.clock.advance(2.5)
        again.end(again.dispatch())
        assert counted() == 2

    async def test_a_suspended_block_stays_suspended(self, make) -> None:
        house = await make(experiment=HALF)
        into_block(house)
        await serve(house, 30)
        into_block(house, control=True)
        house.dispatch()
        experiments(house).watch(1.0)
        house.chronicle.keep()
        again = await killed(house, make, experiment=HALF)
        assert experiments(again).now()["suspended"] == "overloaded"
        assert not again.dispatch().control

    async def test_a_first_stratum_that_had_not_begun_is_not_begun_by_a_restart(self, make) -> None:
        house = await make(experiment={**HALF, "block_sec": 1000.0})
        first = experiments(house).switchback.first_stratum
        house.clock.advance(2000.0)
        again = await killed(house, make, experiment={**HALF, "block_sec": 1000.0})
        assert experiments(again).switchback.first_stratum == first

    async def test_another_experiment_begins_anew_and_leaves_nothing_of_the_old(self, make) -> None:
        house = await make(experiment=HALF)
        into_block(house)
        await serve(house, 100)
        assert experiments(house).gains().strata > 0
        other = {**HALF, "seed": 5}
        again = await killed(house, make, experiment=other)
        assert experiments(again).gains().strata == 0
        folder = again.left_behind()
        connection = sqlite3.connect(folder / "journal" / "journal.sqlite3")
        names = [
            name for (name,) in connection.execute("SELECT name FROM kept WHERE name LIKE 'proof/block%'")
        ]
        connection.close()
        assert names == []
        assert again.chronicle.as_json()["begun_anew"] == {}

    @pytest.mark.parametrize("damage", [b"", b"\xc1", b"\x92\x01\x02"])
    async def test_corrupt_state_is_set_aside_and_said_and_the_start_goes_on(
        self, make, damage, caplog
    ) -> None:
        house = await make(experiment=HALF, rollout=RAMP)
        into_block(house)
        await serve(house, 100)
        folder = house.left_behind()
        block = max(experiments(house).switchback.blocks())
        kept(folder, f"proof/block/{block}", damage)
        again = await make(clock=house.clock, folder=folder, experiment=HALF, rollout=RAMP)
        assert experiments(again).gains().strata == 0
        assert set(again.chronicle.as_json()["begun_anew"]) == {"comparison"}
        assert "proof_set_aside" in caplog.text
        assert [each["route"] for each in experiments(again).rollouts.as_json(0.0)] == ["auto"]
        again.journal.flush()
        assert kept(folder, "set aside/comparison") is not None
        third = await killed(again, make, experiment=HALF, rollout=RAMP)
        assert third.chronicle.as_json()["begun_anew"] == {}


class TestConversations:
    async def test_what_conversations_showed_survives(self, make) -> None:
        house = await make(experiment=TALK)
        for number in range(400):
            dispatch = house.dispatch(conversation_id=f"c{number}")
            failed = not dispatch.control and number % 3 == 0
            house.end(dispatch, Ending.FAILED if failed else Ending.SUCCEEDED, status=500 if failed else 200)
        await house.made.optimizer.cycle.probe()
        again = await killed(house, make, experiment=TALK)
        before, after = (experiments(each).conversations()["auto"] for each in (house, again))
        for measure in Measure:
            assert after.compared(measure) == before.compared(measure)
        assert after.compared(Measure.ERRORS).difference is not None

    async def test_a_conversation_stays_on_its_side(self, make) -> None:
        house = await make(experiment=TALK)
        before = [alone(house, str(n)) for n in range(30)]
        again = await killed(house, make, experiment=TALK)
        assert [alone(again, str(n)) for n in range(30)] == before


class TestRollouts:
    async def harmed(self, make: Callable[..., Any]) -> Any:
        house = await make(rollout=RAMP, experiment=TALK | {"conversation_share": 0.0})
        for number in range(300):
            dispatch = house.dispatch()
            failed = not dispatch.control and number % 2 == 0
            house.end(dispatch, Ending.FAILED if failed else Ending.SUCCEEDED, status=500 if failed else 200)
        await house.made.optimizer.cycle.probe()
        return house

    async def test_one_that_was_taken_back_stays_taken_back(self, make) -> None:
        house = await self.harmed(make)
        config = {"rollout": RAMP, "experiment": TALK | {"conversation_share": 0.0}}
        for _ in range(3):
            house = await killed(house, make, **config)
            house.clock.advance(3600.0)
            assert {house.answer().reason for _ in range(30)} == {"rollout"}
            await house.made.optimizer.cycle.probe()
            shown = experiments(house).rollouts.as_json(house.clock.monotonic_s())[0]
            assert (shown["share"], shown["harm"]) == (0.0, "errors_burning")
        await house.made.control.apply(Configure(changes={"rollout": {"attempt": 2}}))
        assert any(not house.answer().control for _ in range(50))

    async def test_a_raised_attempt_in_the_settings_begins_it_anew(self, make) -> None:
        house = await self.harmed(make)
        config = {"rollout": {**RAMP, "attempt": 2}, "experiment": TALK | {"conversation_share": 0.0}}
        again = await killed(house, make, **config)
        assert any(not again.answer().control for _ in range(50))

    async def test_a_ramp_goes_on_at_its_step_with_the_evidence_it_had(self, make) -> None:
        config = {"rollout": RAMP, "experiment": TALK | {"conversation_share": 0.0}}
        house = await make(**config)
        for number in range(600):
            house.clock.advance(0.5)
            house.end(house.dispatch(), total_s=0.2)
            if number % 20 == 0:
                await house.made.optimizer.cycle.probe()
        house.chronicle.keep()
        at_s = house.clock.monotonic_s()
        before = experiments(house).rollouts.as_json(at_s)[0]
        assert before["share"] > 0.2
        again = await killed(house, make, **config)
        after = experiments(again).rollouts.as_json(at_s)[0]
        assert {**after, "seconds": 0} == {**before, "seconds": 0}
        assert after["seconds"] == pytest.approx(before["seconds"], abs=1.0)

    async def test_a_corrupt_rollout_begins_at_its_first_step_and_says_so(self, make) -> None:
        house = await self.harmed(make)
        folder = house.left_behind()
        kept(folder, "proof/rollout", b"\x81\xa1x\x01")
        config = {"rollout": RAMP, "experiment": TALK | {"conversation_share": 0.0}}
        again = await make(clock=house.clock, folder=folder, **config)
        assert "rollout" in again.chronicle.as_json()["begun_anew"]
        again.dispatch()
        assert experiments(again).rollouts.as_json(0.0)[0]["share"] == 0.2
