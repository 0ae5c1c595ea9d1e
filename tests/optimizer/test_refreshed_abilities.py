"""Members whose engines change while they serve."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadwise.decision.facts import Feature
from loadwise.errors import RequestError


async def test_a_feature_that_an_engine_gains_is_served_after_the_next_turn(make) -> None:
    server = make(qualities={"accurate": 1.0})
    asked = {"features": frozenset({Feature.REASONING_EFFORT})}
    with pytest.raises(RequestError, match="reasoning_effort"):
        server.dispatch(1, **asked)
    engine = server.engines["accurate/0"]
    engine.capabilities = replace(engine.capabilities, features=frozenset(Feature))
    await server.turn()
    assert server.dispatch(2, **asked).member_id == "accurate"


async def test_nothing_is_rebuilt_while_nothing_changes(make) -> None:
    server = make()
    await server.turn()
    routes = server.made.optimizer.ensemble_manager.fleet.routes
    await server.turn()
    assert server.made.optimizer.ensemble_manager.fleet.routes is routes
