"""Experiments and rollout over a whole optimizer: who is left alone, what counts, and what is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadwise.decision.facts import Ending, Principal
from loadwise.decision.improvement import FIRST_LOOK
from loadwise.errors import RequestError
from loadwise.optimizer.experiments import Experiments
from loadwise.optimizer.tallies import Measure
from loadwise.ports import Configure, View
from loadwise.settings import OptimizationConfig
from loadwise.testing import FakeClock

HALF = {"block_share": 0.5, "block_sec": 10.0, "burn_in_sec": 2.0, "conversation_share": 0.0}
RAMP = {"mode": "ramp", "steps": [0.2, 1.0], "step_sec": 60.0, "step_requests": 50}
TALK = {"block_share": 0.0, "conversation_share": 0.5}


async def started(make: Callable[..., Any], **config: Any) -> Any:
    server = make(capacity=1000, ensemble_strategy="weighted_voting", **config)
    await server.optimizer.cycle.tune()
    server.optimizer.director.running = True
    return server


def experiments(server: Any) -> Any:
    return server.optimizer.recorder.experiments


def into_block(server: Any, *, control: bool, settled: bool = True) -> None:
    """Time passes until the next block of that kind, in or past its burn-in."""
    schedule = experiments(server).switchback.schedule
    for _ in range(500):
        wall_s = server.clock.wall_s()
        server.clock.advance(schedule.block_s - wall_s % schedule.block_s)
        if experiments(server).now()["optimised"] is not control:
            server.clock.advance(3.0 if settled else 0.5)
            return
    raise AssertionError("no such block")


def serve(server: Any, strata: int, *, on_s: float = 0.3, off_s: float = 0.3, each: int = 10) -> None:
    """Whole strata of requests, as slow as their kind."""
    for _ in range(int(strata * 2 * 10.0)):
        server.clock.advance(1.0)
        for number in range(each // 5):
            dispatch = server.dispatch(number)
            took_s = off_s if dispatch.control else on_s
            server.end(dispatch, total_s=took_s, time_to_first_token_s=took_s / 2)


def scored(server: Any, dispatch: Any, score: float) -> None:
    """Feedback on a request counts in its comparisons."""
    part = experiments(server).assign("auto", dispatch.request, dispatch.started_s)
    experiments(server).compare("auto", part.unit, part.enrolled, Measure.SCORES, score)


class TestBlocks:
    async def test_an_unoptimised_block_answers_with_the_default_member_untouched(self, make) -> None:
        server = await started(make, experiment=HALF)
        into_block(server, control=True)
        dispatch = server.dispatch()
        assert (dispatch.member_id, dispatch.reason, dict(dispatch.changes)) == ("accurate", "control", {})
        assert dispatch.control
        into_block(server, control=False)
        assert not server.dispatch().control

    async def test_it_covers_the_whole_pool_also_named_members_and_conversations(self, make) -> None:
        server = await started(make, experiment=HALF)
        into_block(server, control=False)
        first = server.dispatch(conversation_id="c")
        into_block(server, control=True)
        going_on = server.dispatch(conversation_id="c", continues=True)
        assert going_on.member_id == first.member_id
        assert dict(going_on.changes) == {}
        named = server.dispatch(model="fast")
        assert (named.member_id, dict(named.changes)) == ("fast", {})

    async def test_nothing_is_held_before_the_first_whole_stratum(self, make) -> None:
        server = await started(make, experiment={**HALF, "block_sec": 1000.0})
        schedule = experiments(server).switchback.schedule
        left_s = 2000.0 - server.clock.wall_s() % 2000.0
        for _ in range(20):
            assert not server.dispatch().control
            server.clock.advance(left_s / 21)
        assert schedule.stratum.denominator == 2

    def test_processes_of_one_server_agree(self) -> None:
        kinds = []
        for started_s in (5.0, 98_765.0):
            clock = FakeClock(monotonic_s=started_s)
            made = Experiments(OptimizationConfig(experiment=HALF), clock)
            kinds.append([])
            for _ in range(60):
                clock.advance(5.0)
                kinds[-1].append(made.leaves_alone(clock.monotonic_s()))
        assert kinds[0] == kinds[1]
        assert set(kinds[0]) == {True, False}

    async def test_the_gain_is_measured_and_null_before_the_first_look(self, make) -> None:
        server = await started(make, experiment=HALF)
        into_block(server, control=False)
        serve(server, FIRST_LOOK - 2, off_s=30.0)
        report = await server.made.control.read(View.REPORT)
        assert report["performance_improvement"] is None
        assert report["improvement"]["blocks"]["first_look_at_strata"] == FIRST_LOOK
        assert 0 < report["improvement"]["blocks"]["strata"] < FIRST_LOOK
        serve(server, 30, off_s=30.0)
        report = await server.made.control.read(View.REPORT)
        assert report["performance_improvement"] == pytest.approx(1.0, abs=0.05)
        assert report["improvement"]["low"] > 0.5
        assert report["improvement"]["latency_ratios"]["time_to_first_token"]["value"] == pytest.approx(0.01)
        for view in (View.STATUS, View.DASHBOARD):
            assert (await server.made.control.read(view))["improvement"] == report["improvement"]

    async def test_burn_in_named_bound_retried_and_switched_off_requests_are_not_compared(self, make) -> None:
        server = await started(make, experiment=HALF)
        into_block(server, control=False)
        server.end(server.dispatch(conversation_id="c"))
        counted = lambda: experiments(server).switchback.errors(server.clock.wall_s())[1]  # noqa: E731
        assert counted() == 1
        server.end(server.dispatch(conversation_id="c", continues=True))
        server.end(server.dispatch(model="fast"))
        server.end(server.dispatch(off=True))
        server.end(server.director.dispatch(server.request(9), frozenset({"fast/0"})))
        server.end(server.dispatch(), Ending.ABANDONED)
        server.end(server.dispatch(), Ending.FAILED, status=400)
        assert counted() == 1
        into_block(server, control=False, settled=False)
        server.end(server.dispatch())
        assert counted() == 0

    async def test_settings_that_concern_it_begin_it_anew_and_others_do_not(self, make) -> None:
        server = await started(make, experiment=HALF)
        into_block(server, control=False)
        serve(server, 20, off_s=30.0)
        found = experiments(server).improvement()
        assert found is not None
        await server.made.control.apply(Configure(changes={"alert_latency_ms": 400.0}))
        assert experiments(server).improvement() == found
        await server.made.control.apply(Configure(changes={"experiment": {"seed": 5}}))
        assert experiments(server).improvement() is None


class TestSuspension:
    async def test_overload_ends_an_unoptimised_block_at_once_and_only_that_block(self, make) -> None:
        server = await started(make, experiment=HALF)
        into_block(server, control=True)
        assert server.dispatch().control
        experiments(server).watch(0.96)
        assert not server.dispatch().control
        assert experiments(server).now()["suspended"] == "overloaded"
        into_block(server, control=True)
        assert server.dispatch().control

    async def test_the_loop_watches_over_it(self, make) -> None:
        server = await started(make, experiment=HALF, alert_error_rate=0.05)
        into_block(server, control=True)
        for number in range(20):
            server.end(server.dispatch(number), Ending.FAILED, status=500)
        await server.optimizer.cycle.probe()
        assert experiments(server).now()["suspended"] == "error_budget_burning"

    async def test_late_answers_end_it_before_they_are_a_page(self, make) -> None:
        server = await started(make, experiment=HALF)
        into_block(server, control=False)
        for number in range(40):
            server.end(server.dispatch(number))
        into_block(server, control=True)
        for number in range(20):
            dispatch = server.dispatch(number)
            server.end(dispatch, total_s=30.0, time_to_first_token_s=9.0)
            if not dispatch.control:
                break
            await server.optimizer.cycle.probe()
            server.optimizer.watch.evaluate()
        assert experiments(server).now()["suspended"] == "objectives_burning"
        server.clock.advance(70.0)
        server.optimizer.watch.evaluate()
        assert "objectives_burning" not in [alert.name for alert in server.optimizer.alerts.active()]

    async def test_a_refusal_counts_as_missed_and_suspends(self, make) -> None:
        server = make(capacity=1, queue_limit=0, experiment=HALF)
        await server.optimizer.cycle.tune()
        server.optimizer.director.running = True
        into_block(server, control=True)
        server.dispatch()
        with pytest.raises(RequestError) as caught:
            server.dispatch(1)
        assert caught.value.status == 429
        assert experiments(server).now()["suspended"] == "refusing"
        assert experiments(server).switchback.errors(server.clock.wall_s()) == (1, 1)

    async def test_what_comes_after_it_counts_as_missed_with_both_extremes_shown(self, make) -> None:
        server = await started(make, experiment=HALF)
        into_block(server, control=False)
        for _ in range(20 * 2 * 10):
            server.clock.advance(1.0)
            # The second half of each unoptimised block is cut.
            if server.clock.wall_s() % 10.0 >= 6.0:
                experiments(server).watch(1.0)
            for number in range(3):
                server.end(server.dispatch(number))
        shown = (await server.made.control.read(View.REPORT))["improvement"]
        assert shown["blocks"]["suspended"] == shown["blocks"]["unoptimised"] > 10
        assert shown["value"] == pytest.approx(0.5, abs=0.1)
        assert shown["if_suspended_within"] == pytest.approx(0.0, abs=0.01)
        assert shown["low"] <= 0.0


class TestConversations:
    async def test_a_control_conversation_is_left_alone_at_every_turn(self, make) -> None:
        server = await started(make, experiment=TALK)
        kinds = set()
        for name in map(str, range(40)):
            turns = [server.dispatch(conversation_id=name, continues=turn > 0) for turn in range(3)]
            assert len({turn.control for turn in turns}) == 1
            assert len({turn.member_id for turn in turns}) == 1
            if turns[0].control:
                assert {turn.member_id for turn in turns} == {"accurate"}
                assert [dict(turn.changes) for turn in turns] == [{}] * 3
            kinds.add(turns[0].control)
        assert kinds == {True, False}

    async def test_errors_quality_and_scores_are_compared_per_route(self, make) -> None:
        server = await started(make, experiment=TALK)
        for number in range(600):
            dispatch = server.dispatch(number)
            failed = not dispatch.control and number % 3 == 0
            server.end(dispatch, Ending.FAILED if failed else Ending.SUCCEEDED, status=500 if failed else 200)
            scored(server, dispatch, 0.9 if dispatch.control else 0.3)
        shown = (await server.made.control.read(View.REPORT))["improvement"]["conversations"]["routes"][
            "auto"
        ]
        assert shown["errors"]["difference"]["low"] > 0.1
        assert shown["errors"]["unoptimised"] == 0.0
        assert shown["scores"]["difference"]["high"] < -0.3
        assert shown["quality"]["unoptimised"] == 1.0
        assert shown["quality"]["optimised"] < 1.0

    async def test_what_ends_after_its_comparison_began_anew_counts_nowhere(self, make) -> None:
        server = await started(make, experiment=TALK)
        dispatch = server.dispatch()
        await server.made.control.apply(Configure(changes={"experiment": {"seed": 5}}))
        server.end(dispatch)
        assert experiments(server).conversations() == {}
        server.end(server.dispatch(1))
        assert experiments(server).conversations() != {}


class TestRollout:
    async def test_advisory_changes_nothing_and_says_what_would_have_been_done(self, make) -> None:
        server = await started(make, rollout={"mode": "advisory"})
        members = set()
        for number in range(40):
            dispatch = server.dispatch(number)
            assert (dispatch.member_id, dispatch.reason) == ("accurate", "advisory")
            assert dict(dispatch.changes) == {}
            assert dispatch.advised is not None
            assert dispatch.advised.changes["max_tokens"] > 0
            members.add(dispatch.advised.member_id)
        assert len(members) > 1
        shown = (await server.made.control.read(View.STATUS))["rollout"]
        assert [(each["route"], each["share"], each["reason"]) for each in shown] == [
            ("auto", 0.0, "advisory")
        ]

    async def test_a_key_may_be_ahead_of_its_route(self, make) -> None:
        server = await started(make, rollout={"mode": "advisory", "keys": {"team-a": "full"}})
        assert not server.dispatch(principal=Principal(key_id="team-a")).control
        assert server.dispatch(principal=Principal(key_id="team-b")).reason == "advisory"

    async def test_a_route_has_a_rollout_of_its_own(self, make) -> None:
        server = await started(make, rollout={"routes": {"auto": "advisory"}})
        assert server.dispatch().reason == "advisory"

    async def test_the_share_ramps_up_while_the_evidence_holds(self, make) -> None:
        server = await started(make, rollout=RAMP)
        shares = []
        for number in range(1200):
            server.clock.advance(0.5)
            dispatch = server.dispatch(number)
            shares.append(not dispatch.control)
            if dispatch.control:
                assert dispatch.reason == "rollout"
            server.end(dispatch)
            if number % 20 == 0:
                await server.optimizer.cycle.probe()
        assert 0.1 < sum(shares[:100]) / 100 < 0.35
        assert all(shares[-100:])

    async def test_harm_brings_everything_back_at_once_until_the_operator_begins_anew(self, make) -> None:
        server = await started(make, rollout=RAMP)
        for number in range(300):
            dispatch = server.dispatch(number)
            failed = not dispatch.control and number % 2 == 0
            server.end(dispatch, Ending.FAILED if failed else Ending.SUCCEEDED, status=500 if failed else 200)
        await server.optimizer.cycle.probe()
        shown = (await server.made.control.read(View.STATUS))["rollout"][0]
        assert (shown["share"], shown["harm"]) == (0.0, "errors_burning")
        server.clock.advance(3600.0)
        await server.optimizer.cycle.probe()
        for number in range(300):
            dispatch = server.dispatch(number)
            assert dispatch.reason == "rollout"
            server.end(dispatch)
        await server.made.control.apply(Configure(changes={"rollout": {"attempt": 2}}))
        assert any(not server.dispatch(number).control for number in range(50))

    async def test_a_new_share_begins_the_comparison_of_blocks_anew(self, make) -> None:
        server = await started(make, experiment=HALF, rollout=RAMP)
        for number in range(1200):
            server.clock.advance(0.5)
            server.end(server.dispatch(number))
        before = experiments(server).gains().strata
        await server.optimizer.cycle.probe()
        assert before > experiments(server).gains().strata == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    block_share=st.sampled_from([0.0, 0.1, 0.5]),
    conversation_share=st.sampled_from([0.0, 0.01, 0.5]),
    mode=st.sampled_from(["full", "advisory", "ramp"]),
    endings=st.lists(st.sampled_from(list(Ending)), min_size=1, max_size=30),
)
async def test_whatever_is_measured_a_request_left_alone_is_untouched(
    make, block_share, conversation_share, mode, endings
) -> None:
    server = await started(
        make,
        experiment={"block_share": block_share, "block_sec": 2.0, "conversation_share": conversation_share},
        rollout={"mode": mode},
    )
    for number, ending in enumerate(endings):
        server.clock.advance(1.0)
        dispatch = server.dispatch(number)
        if dispatch.control:
            # Health goes before: what is out of rotation answers nobody.
            out = server.optimizer.ensemble_manager.members_out()
            assert dispatch.member_id == "accurate" or "accurate" in out
            assert dict(dispatch.changes) == {}
            assert dispatch.reason in {"control", "advisory", "rollout"}
        server.end(dispatch, ending)
    assert len(server.director.in_flight) == 0
    for tallies in experiments(server).conversations().values():
        seen = sum(tallies.sums(Measure.ERRORS, optimised=kind)[0] for kind in (True, False))
        assert seen <= sum(ending is not Ending.ABANDONED for ending in endings)
