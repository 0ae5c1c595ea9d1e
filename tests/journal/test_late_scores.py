"""Feedback counts in the comparisons that its request was in, once, however late and after any restart."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from loadwise.decision.facts import Ending, Principal
from loadwise.optimizer.tallies import Measure
from loadwise.ports import Configure, Dispatch, Feedback
from loadwise.telemetry.journal.reader import Reader

ADMIN = Principal(key_id="admin-key", scopes=frozenset({"feedback", "admin:write"}))
TALK = {"block_share": 0.0, "conversation_share": 0.5}
SILENT = {"block_share": 0.0, "conversation_share": 0.0}
RAMP = {"mode": "ramp", "steps": [0.5, 1.0], "step_sec": 60.0, "step_requests": 50}
DAY_S = 86_400.0


async def give(house: Any, dispatch: Dispatch, score: float, source: str = "judge") -> str:
    told = await house.made.control.apply(
        Feedback(request_id=dispatch.request.request_id, score=score, source=source, principal=ADMIN)
    )
    return str(told["status"])


def experiments(house: Any) -> Any:
    return house.made.optimizer.recorder.experiments


def scores(house: Any, *, left_alone: bool) -> tuple[int, float]:
    """How many scores conversations of that kind have, and their sum."""
    found = experiments(house).conversations().get("auto")
    return (0, 0.0) if found is None else found.sums(Measure.SCORES, optimised=not left_alone)


def one_of_each(house: Any) -> tuple[Dispatch, Dispatch]:
    """Two answers, of a conversation with optimisation and of one that is left alone."""
    found: dict[bool, Dispatch] = {}
    while len(found) < 2:
        dispatch = house.answer()
        found.setdefault(dispatch.control, dispatch)
    return found[False], found[True]


async def killed(house: Any, make: Callable[..., Any], **config: object) -> Any:
    """The next process, over what a kill at this moment left behind; time goes on."""
    return await make(clock=house.clock, folder=house.left_behind(), **config)


def notes(house: Any) -> dict[str, bytes]:
    house.journal.flush()
    with Reader(house.folder) as reader:
        return reader.kept_under("proof/score/")


class TestConversations:
    async def test_a_score_of_a_request_of_before_a_kill_counts_on_its_own_side(self, make) -> None:
        house = await make(experiment=TALK)
        optimised, alone = one_of_each(house)
        await house.made.optimizer.cycle.probe()
        again = await killed(house, make, experiment=TALK)
        assert await give(again, optimised, 0.25) == "recorded"
        assert await give(again, alone, 0.75) == "recorded"
        assert scores(again, left_alone=False) == (1, 0.25)
        assert scores(again, left_alone=True) == (1, 0.75)

    async def test_it_counts_days_later_and_after_several_restarts(self, make) -> None:
        house = await make(experiment=TALK)
        _, alone = one_of_each(house)
        for _ in range(3):
            house.clock.advance(2.3 * DAY_S)
            await house.close()
            house = await make(clock=house.clock, experiment=TALK)
        assert await give(house, alone, 1.0) == "recorded"
        assert scores(house, left_alone=True) == (1, 1.0)

    async def test_a_kill_before_anything_was_kept_neither_loses_nor_doubles_it(self, make) -> None:
        """The score is on disk with the feedback, and the sums that it changed are not."""
        house = await make(experiment=TALK)
        _, alone = one_of_each(house)
        await give(house, alone, 0.5)
        assert len(notes(house)) == 1
        again = await killed(house, make, experiment=TALK)
        assert scores(again, left_alone=True) == (1, 0.5)
        assert await give(again, alone, 0.5) == "already_recorded"
        third = await killed(again, make, experiment=TALK)
        assert scores(third, left_alone=True) == (1, 0.5)
        assert notes(third) == {}

    async def test_a_kill_after_it_was_kept_neither_loses_nor_doubles_it(self, make) -> None:
        house = await make(experiment=TALK)
        _, alone = one_of_each(house)
        await give(house, alone, 0.5)
        await house.made.optimizer.cycle.probe()
        assert notes(house) == {}
        again = await killed(house, make, experiment=TALK)
        assert scores(again, left_alone=True) == (1, 0.5)
        assert await give(again, alone, 0.5) == "already_recorded"
        assert await give(again, alone, 0.75, source="another") == "recorded"
        assert scores(again, left_alone=True) == (2, 1.25)

    @pytest.mark.parametrize("seed", range(4))
    async def test_whenever_the_process_dies_every_score_counts_once(self, make, seed) -> None:
        chance, house = Random(seed), await make(experiment=TALK)
        answers: list[Dispatch] = []
        expected: dict[tuple[int, str], float] = {}
        for _ in range(60):
            act = chance.choices(["answer", "score", "keep", "kill"], [6, 8, 2, 1])[0]
            if act == "answer":
                answers.append(house.answer(request_id=f"k{len(answers)}"))
            elif act == "keep":
                await house.made.optimizer.cycle.probe()
            elif act == "kill":
                house = await killed(house, make, experiment=TALK)
            elif answers:
                at, source = chance.randrange(len(answers)), chance.choice("abc")
                score = expected.setdefault((at, source), chance.choice([0.0, 0.25, 1.0]))
                await give(house, answers[at], score, source)
        for alone in (False, True):
            own = [score for (at, _), score in expected.items() if answers[at].control is alone]
            assert scores(house, left_alone=alone) == (len(own), sum(own))

    async def test_in_another_comparison_it_counts_for_its_member_only(self, make) -> None:
        house = await make(experiment=TALK)
        optimised, _ = one_of_each(house)
        again = await killed(house, make, experiment={**TALK, "seed": 5})
        member = optimised.member_id
        before = again.made.optimizer.ensemble_manager.beliefs[member].quality
        assert await give(again, optimised, 0.0) == "recorded"
        assert again.made.optimizer.ensemble_manager.beliefs[member].quality < before
        assert experiments(again).conversations() == {}
        # Nor in a third one that has the settings of the first.
        third = await killed(again, make, experiment=TALK)
        assert await give(third, optimised, 0.0, source="another") == "recorded"
        assert experiments(third).conversations() == {}

    async def test_what_a_client_broke_off_says_nothing_of_either_kind(self, make) -> None:
        house = await make(experiment=TALK)
        dispatch = house.dispatch()
        house.end(dispatch, Ending.ABANDONED)
        assert await give(house, dispatch, 0.0) == "recorded"
        assert notes(house) == {}
        assert experiments(house).conversations() == {}

    async def test_a_note_that_cannot_be_understood_is_set_aside_and_the_rest_goes_on(self, make) -> None:
        house = await make(experiment=TALK)
        optimised, _ = one_of_each(house)
        await house.made.optimizer.cycle.probe()
        house.journal.keep({"proof/score/odd": b"\xc1"})
        again = await killed(house, make, experiment=TALK)
        assert set(again.chronicle.as_json()["begun_anew"]) == {"scores"}
        assert await give(again, optimised, 0.25) == "recorded"
        assert scores(again, left_alone=False) == (1, 0.25)


class TestRollouts:
    async def raised(self, make: Callable[..., Any]) -> tuple[Any, list[Dispatch]]:
        """A rollout one step further, and the answers of its first step."""
        house, answers = await make(experiment=SILENT, rollout=RAMP), []
        for number in range(1200):
            house.clock.advance(0.5)
            answers.append(house.dispatch())
            house.end(answers[-1], total_s=0.2)
            if number % 20 == 0:
                await house.made.optimizer.cycle.probe()
                if self.shown(house)["share"] == 1.0:
                    return house, answers
        raise AssertionError("it was not raised")

    def shown(self, house: Any) -> dict[str, Any]:
        found: dict[str, Any] = experiments(house).rollouts.as_json(house.clock.monotonic_s())[0]
        return found

    async def test_bad_scores_of_a_step_that_was_left_take_it_back_also_after_a_kill(self, make) -> None:
        house, answers = await self.raised(make)
        house = await killed(house, make, experiment=SILENT, rollout=RAMP)
        house.clock.advance(DAY_S)
        assert {house.answer(request_id=f"later-{n}").control for n in range(20)} == {False}
        for number, dispatch in enumerate(answers):
            await give(house, dispatch, 0.9 if dispatch.control else 0.3)
            if number == len(answers) // 2:
                house = await killed(house, make, experiment=SILENT, rollout=RAMP)
        await house.made.optimizer.cycle.probe()
        assert (self.shown(house)["share"], self.shown(house)["harm"]) == (0.0, "lower_scores")

    async def test_scores_of_an_attempt_that_was_taken_back_say_nothing_of_the_next(self, make) -> None:
        house, answers = await self.raised(make)
        await house.made.control.apply(Configure(changes={"rollout": {"attempt": 2}}))
        house.answer()
        for dispatch in answers:
            await give(house, dispatch, 0.9 if dispatch.control else 0.3)
        await house.made.optimizer.cycle.probe()
        assert self.shown(house)["harm"] is None
