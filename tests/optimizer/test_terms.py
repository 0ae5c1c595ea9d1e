"""Limits, prices and tags on live requests: kept, shown, and given back when time has passed."""

from __future__ import annotations

from typing import Any

import pytest

from loadwise.decision.facts import Ending, Principal
from loadwise.decision.limits import Limits
from loadwise.decision.price import Price
from loadwise.decision.tags import TagRule
from loadwise.errors import RequestError
from loadwise.settings import RouteSettings
from loadwise.telemetry import names

ONLY = {"fast": 0.5}


def on_terms(server: Any, member: str = "fast", **terms: Any) -> None:
    server.optimizer.ensemble_manager.fleet.update(member, **terms)


def shown(server: Any, member: str = "fast") -> dict[str, Any]:
    models = server.optimizer.ensemble_manager.get_ensemble_status()["models"]
    return next(model for model in models if model["model_id"] == member)


async def test_requests_per_minute_are_kept_and_come_back(make: Any) -> None:
    server = make(qualities=ONLY, capacity=100)
    on_terms(server, limits=Limits(requests_per_minute=3))
    for number in range(3):
        server.end(server.dispatch(number))
    with pytest.raises(RequestError) as refused:
        server.dispatch(3)
    error = refused.value
    assert (error.status, error.code) == (429, "requests_per_minute")
    assert error.retry_after_s is not None
    assert shown(server)["last_minute"] == {"requests": 3, "tokens": 120}
    server.clock.advance(error.retry_after_s)
    server.dispatch(4)


async def test_a_member_at_its_limit_is_passed_over_for_another(make: Any) -> None:
    server = make(qualities={"fast": 0.5, "accurate": 0.9}, capacity=100)
    on_terms(server, "accurate", limits=Limits(max_concurrent_requests=1))
    assert [server.dispatch(number, off=False).member_id for number in range(1)] == ["accurate"]
    await server.optimizer.start_optimization()
    assert {server.dispatch(number).member_id for number in range(1, 5)} == {"fast"}
    with pytest.raises(RequestError) as refused:
        server.dispatch(9, model="accurate")
    assert refused.value.code == "max_concurrent_requests"


async def test_tokens_count_as_expected_and_then_as_they_were(make: Any) -> None:
    server = make(qualities=ONLY, capacity=100)
    on_terms(server, limits=Limits(tokens_per_minute=200))
    first = server.dispatch(0)
    # 20 of the prompt and the 128 that answers are assumed to have.
    assert shown(server)["last_minute"]["tokens"] == 148
    with pytest.raises(RequestError):
        server.dispatch(1)
    server.end(first)
    assert shown(server)["last_minute"]["tokens"] == 40
    server.dispatch(2)


async def test_what_was_spent_is_shown_and_counted(make: Any) -> None:
    server = make(qualities=ONLY, capacity=100)
    on_terms(server, price=Price(input_per_million=1.0, output_per_million=10.0), tags=frozenset({"eu"}))
    server.end(server.dispatch(0), prompt_tokens=1_000_000, output_tokens=100_000)
    server.end(server.dispatch(1), Ending.FAILED, prompt_tokens=None, output_tokens=None)
    view = shown(server)
    assert (view["spent"], view["tags"]) == (2.0, ["eu"])
    assert view["price"]["output_per_million"] == 10.0
    assert server.made.telemetry.value(names.SPENT, {"member": "fast"}) == 2.0


async def test_how_much_of_a_limit_is_used_is_a_gauge(make: Any) -> None:
    server = make(qualities=ONLY, capacity=100)
    on_terms(server, limits=Limits(requests_per_minute=4, max_concurrent_requests=2))
    server.dispatch(0)
    used = {
        name: server.made.telemetry.value(names.LIMIT_USED, {"member": "fast", "limit": name})
        for name in ("requests_per_minute", "tokens_per_minute", "max_concurrent_requests")
    }
    assert used == {
        "requests_per_minute": 0.25, "tokens_per_minute": None, "max_concurrent_requests": 0.5
    }  # fmt: skip


async def test_a_key_may_not_name_a_member_that_its_tags_keep_out(make: Any) -> None:
    server = make(qualities=ONLY, capacity=100)
    on_terms(server, tags=frozenset({"paid"}))
    who = Principal(key_id="k", tags=TagRule(forbid=frozenset({"paid"})))
    for model in ("auto", "fast"):
        with pytest.raises(RequestError) as refused:
            server.dispatch(0, model=model, principal=who)
        assert (refused.value.status, refused.value.kind) == (403, "permission_error")
        assert "forbids the tag paid" in str(refused.value)


async def test_a_key_sees_the_models_that_it_may_ask_and_no_others(make: Any) -> None:
    server = make(routes={"free": RouteSettings(forbid_tags=frozenset({"paid"}))})
    for member in server.optimizer.ensemble_manager.fleet.active("auto"):
        on_terms(server, member, tags=frozenset({"paid"} if member != "fast" else ()))
    listed = {card.model_id for card in server.director.models()}
    thrifty = Principal(key_id="k", tags=TagRule(forbid=frozenset({"paid"})))
    assert {card.model_id for card in server.director.models(thrifty)} == {"auto", "free", "fast"} < listed
    nothing = Principal(key_id="n", tags=TagRule(require=frozenset({"eu"})))
    assert server.director.models(nothing) == []
    with pytest.raises(RequestError) as unknown:
        server.dispatch(0, model="absent", principal=thrifty)
    assert "accurate" not in str(unknown.value)


async def test_a_route_without_members_has_all_that_its_tags_allow(make: Any) -> None:
    routes = {
        "free": RouteSettings(forbid_tags=frozenset({"paid"})),
        "eu": RouteSettings(require_tags={"eu"}),
    }
    server = make(routes=routes)
    fleet = server.optimizer.ensemble_manager.fleet
    assert fleet.active("free") == fleet.active("auto")
    assert fleet.active("eu") == ()
