"""What would miss its objectives in the queue is refused at once, whoever was asked for."""

from __future__ import annotations

from contextlib import suppress

import pytest

from loadwise.decision.limits import Limits
from loadwise.errors import RequestError
from loadwise.ports import Dispatch


async def slow_server(make, **options):  # type: ignore[no-untyped-def]
    """A running server whose members each answered thirty times: 20 tokens in 0.6 s, `fast` in 0.15 s."""
    server = make(**{"capacity": 2, "queue_limit": 100, **options})
    await server.optimizer.start_optimization()
    await server.optimizer.loop.stop()
    for number in range(30):
        for member in server.engines:
            ended(server, server.dispatch(number, model=member.split("/")[0]))
    return server


def ended(server, dispatch: Dispatch) -> None:  # type: ignore[no-untyped-def]
    first_s, total_s = (0.05, 0.15) if dispatch.member_id == "fast" else (0.2, 0.6)
    server.end(dispatch, time_to_first_token_s=first_s, total_s=total_s)


def asked_until_refused(server, model: str) -> tuple[int, RequestError]:  # type: ignore[no-untyped-def]
    for number in range(300):
        try:
            server.dispatch(number, model=model)
        except RequestError as error:
            return number, error
    raise AssertionError("300 requests entered")


@pytest.mark.parametrize("model", ["auto", "accurate"])
async def test_a_queue_that_would_miss_the_objective_is_not_joined(make, model: str) -> None:
    server = await slow_server(make)
    entered, error = asked_until_refused(server, model)
    assert error.status == 429
    assert error.code in {"too_late", "too_slow"}
    assert error.retry_after_s is not None
    assert error.retry_after_s >= 1.0
    # Long before the places are full.
    assert 2 <= entered < 30


async def test_what_is_refused_on_a_device_is_not_sent_to_another_engine_on_it(make) -> None:
    server = await slow_server(make, capacity=2)
    asked_until_refused(server, "auto")
    before = dict(server.director.in_flight.by_member)
    with pytest.raises(RequestError):
        server.dispatch(999)
    assert server.director.in_flight.by_member == before


async def test_when_the_queue_has_drained_requests_enter_again(make) -> None:
    server = await slow_server(make)
    asked_until_refused(server, "accurate")
    server.clock.advance(5.0)
    for entry in [*server.director.in_flight._open.values()]:
        ended(server, entry.dispatch)
    assert server.dispatch(model="accurate").member_id == "accurate"


async def test_members_that_nobody_measured_refuse_only_what_finds_no_place(make) -> None:
    server = make(capacity=2, queue_limit=20)
    await server.optimizer.start_optimization()
    await server.optimizer.loop.stop()
    entered, error = asked_until_refused(server, "accurate")
    assert (entered, error.code) == (22, "queue_full")


async def server_with_a_queue_of_unknown_length(make):  # type: ignore[no-untyped-def]
    """A running server whose upstreams run eight requests at once and do not say how many may wait."""
    server = make(capacity=8, queue_limit=None, embedded=False)
    await server.optimizer.start_optimization()
    await server.optimizer.loop.stop()
    return server


async def test_places_alone_refuse_nobody_where_the_upstream_does_not_say_how_many_may_wait(make) -> None:
    server = await server_with_a_queue_of_unknown_length(make)
    entered = [server.dispatch(number, model="accurate") for number in range(16)]
    assert server.director.in_flight.by_member["accurate"] == len(entered) == 16


async def test_an_operators_limit_bounds_what_such_an_upstream_holds(make) -> None:
    server = await server_with_a_queue_of_unknown_length(make)
    server.optimizer.ensemble_manager.fleet.update("accurate", limits=Limits(max_concurrent_requests=8))
    entered, error = asked_until_refused(server, "accurate")
    assert (entered, error.status, error.code) == (8, 429, "max_concurrent_requests")


@pytest.mark.parametrize("how", ["setting", "stopped"])
async def test_lateness_refuses_nobody_when_that_is_not_wanted(make, how: str) -> None:
    server = await slow_server(make, refuse_late=how != "setting", queue_limit=20)
    if how == "stopped":
        await server.optimizer.stop_optimization()
    entered, error = asked_until_refused(server, "accurate")
    assert (entered, error.code) == (22, "queue_full")


async def test_each_route_refuses_by_its_own_objectives(make) -> None:
    patient, hasty = [
        asked_until_refused(
            await slow_server(
                make, objectives={"time_to_first_token_s": seconds, "time_per_output_token_s": 1.0}
            ),
            "accurate",
        )[0]
        for seconds in (8.0, 1.0)
    ]
    assert patient > 2 * hasty


async def test_demand_above_the_best_member_moves_the_lead_and_falling_demand_gives_it_back(make) -> None:
    server = await slow_server(make)

    async def seconds(count: int, per_s: int) -> None:
        for _ in range(count):
            for number in range(per_s):
                try:
                    ended(server, server.dispatch(number))
                except RequestError as error:
                    assert error.status == 429  # noqa: PT017 - refused or not, it was asked for
            await server.turn(1.0)

    def leads() -> frozenset[str]:
        return server.director.strategies["local"].leads["auto"]

    await seconds(20, 1)
    assert leads() == {"accurate"}
    await seconds(20, 30)
    assert leads() != {"accurate"}
    await seconds(60, 1)
    assert leads() == {"accurate"}


async def test_a_surge_moves_the_lead_at_the_request_that_shows_it(make) -> None:
    server = await slow_server(make)
    for number in range(20):
        ended(server, server.dispatch(number))
        await server.turn(1.0)

    def leads() -> frozenset[str]:
        return server.director.strategies["local"].leads["auto"]

    assert leads() == {"accurate"}
    for number in range(100):
        # Refused or not, it was asked for.
        with suppress(RequestError):
            server.dispatch(number)
    # No turn of the loop passed.
    assert leads() != {"accurate"}
