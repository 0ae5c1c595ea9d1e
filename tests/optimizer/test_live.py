"""What the page and the text of the status show of a whole optimizer."""

from __future__ import annotations

import json
import shlex

from loadwise.decision.facts import Ending
from loadwise.optimizer import live, situation, undoing
from loadwise.ports import Configure, Stop, View


async def answer(server, count=30, **facts):
    for number in range(count):
        server.end(server.dispatch(number), **facts)


async def started(make, **config):
    server = make(**config)
    await server.optimizer.start_optimization()
    return server


async def closed(server):
    await server.optimizer.close()


async def test_the_page_has_values_before_the_first_request_and_none_are_invented(make):
    server = await started(make)
    frame = await server.made.control.read(View.LIVE)
    assert frame["latency"]["total_s"] == {"p50": None, "p95": None, "p99": None, "requests": 0}
    assert frame["improvement"]["value"] is None
    assert {member["share_5m"] for member in frame["members"]} == {None}
    assert frame["diagnosis"]["culprit"] == "unknown"
    json.dumps(frame, allow_nan=False)
    await closed(server)


async def test_members_shares_latencies_and_objectives_are_those_of_the_answers(make):
    server = await started(make, qualities={"only": 0.5})
    await answer(server, 20, total_s=0.5, time_to_first_token_s=0.1)
    await answer(server, 20, total_s=4.0, time_to_first_token_s=3.0)
    frame = live.frame(server.optimizer)
    (member,) = frame["members"]
    assert (member["share_5m"], member["requests_5m"], member["within_5m"]) == (1.0, 40, 0.5)
    assert 2.9 < frame["latency"]["time_to_first_token_s"]["p95"] < 3.1
    first = next(b for b in frame["diagnosis"]["burns"] if b["objective"].startswith("time to first"))
    assert (first["requests_5m"], first["missed_5m"]) == (40, 20)
    assert round(first["burn_5m"], 6) == 50.0
    await closed(server)


async def test_a_failing_member_is_named_at_night_with_what_to_do(make):
    server = await started(make)
    for number in range(60):
        dispatch = server.dispatch(number)
        failed = dispatch.member_id == "fast"
        server.end(dispatch, Ending.FAILED if failed else Ending.SUCCEEDED, status=500 if failed else 200)
    named = server.dispatch(99, model="fast")
    server.end(named, Ending.FAILED, status=500)
    for number in range(100, 115):
        # Between them the probes that are let in where nobody answers.
        server.clock.advance(6.0)
        server.end(server.dispatch(number, model="fast"), Ending.FAILED, status=500)
    said = situation.text(server.optimizer)
    assert "Member fast is at fault" in said.splitlines()[1]
    await closed(server)


async def test_what_was_changed_is_told_with_the_command_that_undoes_it(make):
    server = await started(make, load_threshold_high=0.8)
    await server.made.control.apply(Configure(changes={"load_threshold_high": 0.9}))
    said = situation.text(server.optimizer)
    assert "load_threshold_high=0.9" in said
    assert """-d '{"load_threshold_high":0.8}'""" in said
    await closed(server)


async def test_the_page_tells_the_newest_changes_and_how_long_ago_they_were(make):
    server = await started(make)
    assert live.frame(server.optimizer)["changes"] == []
    for value in (0.06, 0.07):
        await server.made.control.apply(Configure(changes={"hysteresis": value}))
        (newest, *_) = before = live.frame(server.optimizer)["changes"]
        assert newest["what"].endswith(f"hysteresis={value}")
        server.clock.advance(5.0)
        after = live.frame(server.optimizer)["changes"]
        assert [row["ago_s"] - old["ago_s"] for row, old in zip(after, before, strict=True)] == [5.0] * len(
            after
        )
        assert after == undoing.changes(server.optimizer)


async def test_the_page_shows_the_configuration_that_is_in_force(make):
    server = await started(make)
    assert live.frame(server.optimizer)["config"]["hysteresis"] == 0.05
    await server.made.control.apply(Configure(changes={"hysteresis": 0.06}))
    assert live.frame(server.optimizer)["config"]["hysteresis"] == 0.06


async def test_an_undo_command_cannot_break_out_of_its_quotes(make):
    server = await started(make, qualities={"it's": 0.5, "b": 0.4}, default_member="it's")
    await server.made.control.apply(Configure(changes={"default_member": "b"}))
    (change,) = undoing.changes(server.optimizer)
    assert shlex.split(change["undo"])[-1] == json.dumps({"default_member": "it's"}, separators=(",", ":"))
    await closed(server)


async def test_a_bypass_is_said_first(make):
    server = await started(make)
    await server.made.control.apply(Stop())
    said = situation.text(server.optimizer)
    assert "BYPASSED" in said.splitlines()[2]
    assert "/v1/optimization/start" in said
    await closed(server)


async def test_starting_is_no_change(make):
    server = await started(make)
    await server.turn()
    assert undoing.changes(server.optimizer) == []
    await closed(server)


async def test_stages_that_cannot_be_told_apart_are_named_as_such(make):
    server = await started(make)
    stages = {stage.name: stage for stage in situation.diagnosis(server.optimizer).stages}
    assert (stages["queue"].mean_s, stages["prefill"].mean_s, stages["decode"].mean_s) == (None, None, None)
    await answer(server, 10, total_s=0.5, time_to_first_token_s=0.2)
    await server.turn(1.0)
    stages = {stage.name: stage for stage in situation.diagnosis(server.optimizer).stages}
    assert abs(stages["decode"].mean_s - 0.3) < 1e-9
    assert stages["queue"].mean_s == 0.0
    assert abs(stages["prefill"].mean_s - 0.2) < 1e-9
    await closed(server)


async def test_the_timeline_has_every_resolution(make):
    server = await started(make)
    await answer(server, 5)
    await server.turn(10.0)
    tracks = (await server.made.control.read(View.TIMELINE))["tracks"]
    assert set(tracks) == {"600", "3600", "86400"}
    assert sum(sum(point["members"].values()) for point in tracks["600"]["points"]) == 5
    assert tracks["600"]["points"][-1]["strategy"] is not None
    await closed(server)
