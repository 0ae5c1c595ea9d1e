"""The gateway's way in: each request is decided, counted, learned from and ended once."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadwise.decision.facts import Ending, Endpoint, Principal
from loadwise.errors import EngineError, RequestError
from loadwise.ports import Call
from loadwise.settings import RouteSettings
from loadwise.telemetry import names


def call(text: str) -> Call:
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": text}]}).encode()
    return Call(endpoint=Endpoint.CHAT, body=body, request_id="r")


async def started(make, **options):  # type: ignore[no-untyped-def]
    server = make(**options)
    await server.optimizer.start_optimization()
    await server.optimizer.loop.stop()
    return server


class TestChoosing:
    async def test_a_quiet_server_answers_auto_with_its_most_accurate_member(self, make) -> None:
        server = await started(make)
        dispatch = server.dispatch()
        assert (dispatch.member_id, dispatch.reason) == ("accurate", "adaptive_low_load")
        assert dispatch.engine is server.engines["accurate/0"]
        assert dispatch.changes["max_tokens"] > 512

    async def test_a_named_member_answers(self, make) -> None:
        server = await started(make)
        dispatch = server.dispatch(model="fast")
        assert (dispatch.member_id, dispatch.reason, dispatch.propensity) == ("fast", "named", 1.0)

    async def test_a_named_member_that_stands_by_answers_too(self, make) -> None:
        server = await started(make, standby=["fast"])
        assert server.dispatch(model="fast").member_id == "fast"

    async def test_a_member_that_stands_by_is_drained_once_its_last_answer_has_ended(self, make) -> None:
        server = await started(make, standby=["fast"])
        compiler = server.optimizer.model_compiler
        assert compiler.drained("fast")
        dispatch = server.dispatch(model="fast")
        assert not compiler.drained("fast")
        server.end(dispatch)
        assert compiler.drained("fast")
        assert not compiler.drained("accurate")
        server.optimizer.ensemble_manager.fleet.admit("fast")
        assert not compiler.drained("fast")

    async def test_an_unknown_model_is_a_404_that_lists_the_known(self, make) -> None:
        server = await started(make)
        with pytest.raises(RequestError, match="Known models: auto, fast") as refused:
            server.dispatch(model="gpt-4")
        assert (refused.value.status, refused.value.param) == (404, "model")
        assert server.made.telemetry.value(names.REFUSED, {"status": "404"}) == 1

    async def test_a_prompt_that_fits_nobody_is_a_400(self, make) -> None:
        server = await started(make)
        with pytest.raises(RequestError) as refused:
            server.dispatch(prompt_tokens=5000, prompt_tokens_bound=5000)
        assert refused.value.status == 400
        assert refused.value.code == "context_length_exceeded"

    async def test_a_retry_goes_to_another_replica_and_to_nobody_when_none_is_left(self, make) -> None:
        server = await started(make, replicas=2)
        first = server.dispatch(model="fast")
        second = server.director.dispatch(server.request(model="fast"), frozenset({first.replica_id}))
        assert second.replica_id != first.replica_id
        with pytest.raises(RequestError) as refused:
            server.director.dispatch(server.request(model="fast"), frozenset({"fast/0", "fast/1"}))
        assert refused.value.status == 503

    async def test_requests_spread_over_the_replicas_of_a_member(self, make) -> None:
        server = await started(make, replicas=2)
        replicas = [server.dispatch(n, model="fast").replica_id for n in range(4)]
        assert sorted(replicas) == ["fast/0", "fast/0", "fast/1", "fast/1"]

    async def test_a_conversation_keeps_its_member(self, make) -> None:
        server = await started(make, ensemble_strategy="weighted_voting")
        for number in range(50):
            first = server.dispatch(number, conversation_id=f"c{number}")
            server.end(first)
            again = server.dispatch(number, conversation_id=f"c{number}", continues=True)
            server.end(again)
            assert again.member_id == first.member_id

    async def test_a_route_of_its_own_uses_its_own_members(self, make) -> None:
        routes = {"cheap": RouteSettings(members=("fast",))}
        server = await started(make, routes=routes)
        assert server.dispatch(model="cheap").member_id == "fast"
        assert [card.model_id for card in server.director.models()][:2] == ["cheap", "auto"]


class TestUntouched:
    async def test_stopped_the_default_answers_and_nothing_is_changed(self, make) -> None:
        server = make()
        dispatch = server.dispatch()
        assert (dispatch.member_id, dispatch.reason, dict(dispatch.changes)) == ("accurate", "stopped", {})
        assert dispatch.control

    async def test_a_request_may_switch_it_off(self, make) -> None:
        server = await started(make)
        dispatch = server.dispatch(off=True)
        assert (dispatch.member_id, dispatch.reason, dict(dispatch.changes)) == ("accurate", "off", {})

    async def test_a_key_may_switch_it_off_and_its_ceiling_still_binds(self, make) -> None:
        server = await started(make)
        who = Principal(key_id="k", optimize=False, ceilings={"max_tokens": 16})
        dispatch = server.dispatch(principal=who, explicit={"max_tokens": 400})
        assert dispatch.reason == "off"
        assert dict(dispatch.changes) == {"max_tokens": 16}

    async def test_explicit_values_win(self, make) -> None:
        server = await started(make)
        dispatch = server.dispatch(explicit={"max_tokens": 700, "temperature": 1.5, "top_k": 3})
        assert dict(dispatch.changes) == {}


class TestEnding:
    async def test_a_second_ending_changes_nothing(self, make) -> None:
        server = await started(make)
        dispatch = server.dispatch()
        server.end(dispatch)
        server.end(dispatch, Ending.FAILED)
        assert len(server.director.in_flight) == 0
        assert server.made.optimizer.recorder.summary().requests == 1
        assert server.optimizer.ensemble_manager.beliefs["accurate"].outcomes == 1

    @settings(
        max_examples=20, deadline=None,
        # The fixture is a factory: every example makes a server of its own.
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )  # fmt: skip
    @given(endings=st.lists(st.sampled_from(list(Ending)), min_size=1, max_size=30))
    async def test_nothing_stays_in_flight_however_requests_end(self, make, endings) -> None:
        server = await started(make, capacity=100)
        dispatches = [server.dispatch(n) for n in range(len(endings))]
        assert len(server.director.in_flight) == len(endings)
        for dispatch, ending in zip(dispatches, endings, strict=True):
            server.end(dispatch, ending)
        assert len(server.director.in_flight) == 0
        assert server.director.in_flight.by_pool == {}

    async def test_counts_rise_and_fall_with_the_requests(self, make) -> None:
        server = await started(make)
        first, second = server.dispatch(0), server.dispatch(1)
        assert (first.concurrency, second.concurrency) == (1, 2)
        gauge = server.made.telemetry.value(names.IN_FLIGHT, {"member": first.member_id})
        assert gauge == 2
        server.end(first)
        server.end(second)
        assert server.made.telemetry.value(names.IN_FLIGHT, {"member": first.member_id}) == 0

    async def test_failures_take_a_member_out_and_success_brings_it_back(self, make) -> None:
        server = await started(make)
        for number in range(5):
            server.end(server.dispatch(number, model="accurate"), Ending.FAILED, status=500)
        assert server.optimizer.ensemble_manager.members_out() == ["accurate"]
        assert server.dispatch(9).member_id != "accurate"
        for _ in range(4):
            server.clock.advance(10.0)
            server.end(server.dispatch(model="accurate"))
        await server.turn(60.0)
        await server.turn(60.0)
        assert server.optimizer.ensemble_manager.members_out() == []
        health = server.optimizer.ensemble_manager.get_ensemble_status()["models"][2]["health"]
        assert health == "healthy"


class TestRoom:
    async def test_a_full_member_gives_way_to_others_and_then_all_are_full(self, make) -> None:
        server = await started(make, capacity=1, queue_limit=1)
        members = [server.dispatch(n).member_id for n in range(6)]
        assert sorted(members) == ["accurate"] * 2 + ["balanced"] * 2 + ["fast"] * 2
        with pytest.raises(RequestError) as refused:
            server.dispatch(7)
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        assert (refused.value.retry_after_s or 0) >= 1

    async def test_a_full_member_that_was_named_is_a_429(self, make) -> None:
        server = await started(make, capacity=1, queue_limit=0)
        server.dispatch(model="fast")
        with pytest.raises(RequestError) as refused:
            server.dispatch(model="fast")
        assert refused.value.status == 429

    async def test_nothing_is_refused_where_places_are_unknown(self, make) -> None:
        server = make()
        assert len({id(server.dispatch(n)) for n in range(200)}) == 200


class TestMeasuring:
    async def test_members_of_one_tokenizer_are_asked_once_and_exact(self, make) -> None:
        server = await started(make)
        size = await server.director.measure("auto", call("three little words"))
        assert size.exact is not None
        assert size.exact == size.bound

    async def test_where_nobody_can_count_bytes_bound_the_prompt(self, make) -> None:
        server = await started(make)

        async def refuse(_: Call) -> int | None:
            raise EngineError("no tokenizer")

        for engine in server.engines.values():
            engine.count_tokens = refuse  # type: ignore[method-assign]
        asked = call("three little words")
        size = await server.director.measure("auto", asked)
        assert size.exact is None
        assert size.bound >= len(asked.body)

    async def test_an_unknown_model_still_gets_a_bound(self, make) -> None:
        server = await started(make)
        assert (await server.director.measure("nope", call("x"))).exact is None
