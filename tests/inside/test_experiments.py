"""Conversations and rollout inside an engine's processes: drawn alike by each, counted once, journaled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadwise.app.inside.control import InsideControl
from loadwise.app.inside.wire import noted, unpacked
from loadwise.decision.facts import Ending, Outcome, Principal, RequestFacts
from loadwise.errors import ConfigurationError
from loadwise.optimizer.beside import Beside
from loadwise.optimizer.desk import Desk
from loadwise.optimizer.tallies import Measure
from loadwise.ports import Configure, Dispatch, Feedback
from loadwise.telemetry.journal.journal import Journal
from loadwise.telemetry.journal.reader import Reader
from loadwise.telemetry.journal.replay import replay

TALK = {"block_share": 0.0, "conversation_share": 0.5}
NONE = {"block_share": 0.0, "conversation_share": 0.0}
HALF = {"block_share": 0.5, "block_sec": 10.0, "burn_in_sec": 0.0, "conversation_share": 0.0}
RAMP = {"mode": "ramp", "steps": [0.2, 1.0], "step_sec": 60.0, "step_requests": 50}


class Processes:
    """Two processes of one engine: their desks follow one plan, and one optimizer hears of both."""

    def __init__(self, site: Any) -> None:
        self.site = site
        self.beside = Beside(site.made.optimizer)
        engine = next(iter(site.made.optimizer.ensemble_manager.fleet.engines().values()))
        self.desks = [site.desk, Desk(site.clock, engine)]
        self.engine = engine
        self.publish()

    def publish(self) -> None:
        self.site.publish()
        plan = self.site.desk.plan
        self.beside.published(plan)
        self.desks[1].plan = plan

    def hear(self) -> None:
        """What the desks noted arrives, from the second one over the wire."""
        for number, desk in enumerate(self.desks):
            for note in desk.take_notes():
                told = unpacked(noted(note), self.engine) if number else note
                self.beside.take(str(number), told)

    def ask(self, number: int, process: int = 0, *, failed: bool = False, **facts: Any) -> Dispatch:
        """One request from beginning to end."""
        desk = self.desks[process]
        asked = RequestFacts(**{"request_id": f"r{number}", "model": "auto", "prompt_tokens": 10, **facts})
        dispatch = desk.dispatch(asked)
        assert dispatch is not None
        ended = Outcome(
            request_id=asked.request_id, member_id=dispatch.member_id, replica_id=dispatch.replica_id,
            ending=Ending.FAILED if failed else Ending.SUCCEEDED, status=500 if failed else 200,
            finished_s=self.site.clock.monotonic_s(), route="auto", total_s=0.2, time_to_first_token_s=0.1,
            prompt_tokens=10, output_tokens=10, finish_reason="stop", control=dispatch.control,
        )  # fmt: skip
        desk.finish(dispatch, lambda: ended)
        return dispatch

    async def turn(self) -> None:
        self.hear()
        await self.site.made.optimizer.cycle.probe()
        self.publish()

    @property
    def experiments(self) -> Any:
        return self.site.made.optimizer.recorder.experiments


@pytest.fixture
def open_processes(site_of: Any) -> Any:
    async def make(**changes: Any) -> Processes:
        return Processes(await site_of(**changes))

    return make


async def test_a_conversation_is_left_alone_alike_by_every_process_and_turn(open_processes: Any) -> None:
    both = await open_processes(experiment=TALK)
    kinds = set()
    for number in range(40):
        turns = [both.ask(number, process, conversation_id=f"c{number}") for process in (0, 1, 0)]
        assert len({turn.control for turn in turns}) == 1
        if turns[0].control:
            assert {turn.reason for turn in turns} == {"control"}
            assert [dict(turn.changes) for turn in turns] == [{}] * 3
        kinds.add(turns[0].control)
    assert kinds == {True, False}


async def test_errors_of_conversations_of_both_processes_are_compared(open_processes: Any) -> None:
    both = await open_processes(experiment=TALK)
    for number in range(800):
        alone = both.experiments.shares("auto", "", 0.0).part(f"r{number}").held is not None
        both.ask(number, number % 2, failed=not alone and number % 3 == 0)
    both.hear()
    found = both.experiments.conversations()["auto"].compared(Measure.ERRORS)
    assert found.requests_optimised + found.requests_unoptimised == 800
    assert found.difference is not None
    assert found.difference.low > 0.1


async def test_a_rollout_ramps_up_while_the_evidence_holds(open_processes: Any) -> None:
    both = await open_processes(experiment=NONE, rollout=RAMP)
    shares = []
    for number in range(1200):
        both.site.clock.advance(0.5)
        shares.append(not both.ask(number, number % 2).control)
        if number % 2:
            await both.turn()
    assert 0.1 < sum(shares[:100]) / 100 < 0.35
    assert all(shares[-100:])


async def test_harm_takes_a_rollout_back_for_every_process(open_processes: Any) -> None:
    both = await open_processes(experiment=NONE, rollout=RAMP)
    for number in range(300):
        alone = both.experiments.shares("auto", "", 0.0).part(f"r{number}").held is not None
        both.ask(number, number % 2, failed=not alone and number % 2 == 0)
    await both.turn()
    (shown,) = both.experiments.rollouts.as_json(both.site.clock.monotonic_s())
    assert (shown["share"], shown["harm"]) == (0.0, "errors_burning")
    seen = {both.ask(1000 + number, number % 2).reason for number in range(40)}
    assert seen == {"rollout"}


async def test_advisory_changes_nothing_and_says_what_would_have_been_done(open_processes: Any) -> None:
    both = await open_processes(experiment=NONE, rollout={"mode": "advisory"})
    for process in (0, 1):
        dispatch = both.ask(process, process)
        assert (dispatch.reason, dispatch.control, dict(dispatch.changes)) == ("advisory", True, {})
        assert dispatch.advised is not None
        assert dispatch.advised.member_id == "stub"
    both.hear()
    assert both.experiments.conversations() == {}


async def test_blocks_are_measured_as_before_beside_a_rollout(open_processes: Any) -> None:
    both = await open_processes(experiment=HALF)
    for number in range(600):
        both.site.clock.advance(1.0)
        both.publish()
        dispatch = both.ask(number, number % 2)
        assert dispatch.control is both.experiments.leaves_alone(both.site.clock.monotonic_s())
        both.hear()
    counted = sum(tally.answers for tally in both.experiments.switchback.tallies().values())
    assert counted > 500


async def test_decisions_are_replayed_and_a_late_score_counts_where_it_belonged(
    open_processes: Any, tmp_path: Path
) -> None:
    both = await open_processes(experiment={**TALK, "conversation_share": 0.3}, rollout=RAMP)
    optimizer = both.site.made.optimizer
    await optimizer.chronicle.open(Journal(tmp_path / "journal", both.site.clock))
    asked = [both.ask(number, number % 2) for number in range(60)]
    asked += [both.ask(100 + number, number % 2, model="stub") for number in range(5)]
    both.hear()
    both.site.clock.advance(86_400.0)
    admin = Principal(scopes=frozenset({"feedback", "admin:write"}))
    for dispatch in asked[:60]:
        said = Feedback(request_id=dispatch.request.request_id, score=0.5, source="judge", principal=admin)
        assert (await both.site.made.control.apply(said))["status"] == "recorded"
    found = both.experiments.conversations()["auto"]
    rolled = [each for each in asked[:60] if each.reason != "rollout"]
    alone = [each for each in rolled if each.control]
    assert found.sums(Measure.SCORES, optimised=False) == (len(alone), 0.5 * len(alone))
    assert found.sums(Measure.SCORES, optimised=True)[0] == len(rolled) - len(alone)
    optimizer.chronicle.journal.flush()
    with Reader(tmp_path / "journal") as reader:
        again = replay(reader.batches())
    assert again.decisions == 65
    assert again.exact


@pytest.mark.parametrize(
    ("rollout", "named"),
    [({"keys": {"team-a": "advisory"}}, "rollout.keys"), ({"routes": {"chat": "ramp"}}, "rollout.routes")],
)
async def test_a_rollout_by_what_requests_do_not_have_is_refused_with_its_reason(
    open_processes: Any, site_of: Any, describe: Any, rollout: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await site_of(rollout=rollout)
    assert caught.value.field == named
    both = await open_processes(experiment=NONE)
    control = InsideControl(both.site.made.control, describe(), dict)
    with pytest.raises(ConfigurationError, match="inside an engine"):
        await control.apply(Configure(changes={"rollout": rollout}))
    answer = await control.apply(Configure(changes={"rollout": {"mode": "ramp", "routes": {"auto": "ramp"}}}))
    assert answer["status"] == "configured"
