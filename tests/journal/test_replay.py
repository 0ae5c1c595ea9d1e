"""Whatever was decided is decided again, and comes out the same."""

from __future__ import annotations

import pytest

from loadwise.decision.admission import Admission, AdmissionReason
from loadwise.decision.limits import Limits
from loadwise.errors import RequestError


@pytest.mark.parametrize("strategy", ["weighted_voting", "best_of_n", "adaptive"])
@pytest.mark.parametrize("replicas", [1, 3])
async def test_every_decision_and_every_step_is_reproduced(make, strategy, replicas):
    house = await make(ensemble_strategy=strategy, replicas=replicas)
    await house.busy(600)
    found = await house.replayed()
    assert found.exact, found.differences[:3]
    assert found.decisions > 500
    assert found.entries >= found.outcomes
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
    assert found.entries == 60 - turned_away


LIMITS = {
    "requests per minute": Limits(requests_per_minute=30),
    "tokens per minute": Limits(tokens_per_minute=4000),
    "requests at once": Limits(max_concurrent_requests=2),
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS.keys())
async def test_who_was_let_in_by_a_limit_is_let_in_by_it_again(make, limits):
    house = await make()
    fleet = house.made.optimizer.ensemble_manager.fleet
    for member in fleet.active():
        fleet.update(member, limits=limits)
    await house.busy(200)
    found = await house.replayed()
    assert found.exact, found.differences[:3]
    assert found.entries > 50
    assert found.admissions > 0


async def test_an_entry_that_another_version_would_refuse_is_told(make, monkeypatch):
    house = await make()
    await house.busy(20)
    no = Admission(admitted=False, reason=AdmissionReason.QUEUE_FULL)
    monkeypatch.setattr("loadwise.telemetry.journal.replay.enter", lambda entry: no)
    found = await house.replayed()
    assert (found.exact, found.entries_same) == (False, 0)
    assert found.entries > 10
    assert {difference.what for difference in found.differences} >= {"entry"}


async def test_what_an_unoptimised_block_left_alone_is_replayed_though_its_member_was_not_free(make):
    """A member that was named, and a conversation elsewhere, keep their member; neither is tuned."""
    house = await make(
        experiment={"block_share": 0.5, "block_sec": 10.0}, qualities={"fast": 0.4, "good": 0.9}
    )
    experiments = house.made.optimizer.recorder.experiments
    first = house.answer(conversation_id="c", quality_preference=0.0, speed_preference=1.0)
    for _ in range(100):
        house.clock.advance(10.0 - house.clock.wall_s() % 10.0 + 1.0)
        if experiments.leaves_alone(house.clock.monotonic_s()):
            break
    named = house.answer(model="fast")
    going_on = house.answer(conversation_id="c", continues=True)
    assert (named.control, dict(named.changes)) == (True, {})
    assert (going_on.control, dict(going_on.changes)) == (True, {})
    assert going_on.member_id == first.member_id
    found = await house.replayed()
    assert found.decisions == 3
    assert found.exact
