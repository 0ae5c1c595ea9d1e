"""Whatever was decided is decided again, and comes out the same."""

from __future__ import annotations

import pytest

from loadwise.errors import RequestError


@pytest.mark.parametrize("strategy", ["weighted_voting", "best_of_n", "adaptive"])
@pytest.mark.parametrize("replicas", [1, 3])
async def test_every_decision_and_every_step_is_reproduced(make, strategy, replicas):
    house = await make(ensemble_strategy=strategy, replicas=replicas)
    await house.busy(600)
    found = await house.replayed()
    assert found.exact, found.differences[:3]
    assert found.decisions > 500
    assert found.steps == 25
    assert found.outcomes > 400
    assert found.refusals > 0
    assert found.dropped == found.skipped == 0


async def test_who_found_no_room_finds_none_again(make):
    house = await make(ensemble_strategy="adaptive")
    turned_away = 0
    for _ in range(60):
        try:
            house.dispatch()
        except RequestError as error:
            assert error.status == 429  # noqa: PT017 - how many are refused is what is counted
            turned_away += 1
    found = await house.replayed()
    assert found.exact, found.differences[:3]
    assert turned_away > 10
    assert found.refusals == turned_away
    assert found.admissions >= turned_away
