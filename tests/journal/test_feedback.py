"""Feedback: once per request and source, in time, by who may, and only a tenth of the say per tenant."""

from __future__ import annotations

import sqlite3

import pytest

from loadwise.decision.facts import Principal
from loadwise.errors import ConfigurationError, RequestError
from loadwise.optimizer.tallies import Measure
from loadwise.ports import Feedback
from loadwise.telemetry.journal.reader import Reader

DAY_S = 86_400.0
BLUE = Principal(tenant="blue", scopes=frozenset({"feedback"}))
RED = Principal(tenant="red", scopes=frozenset({"feedback"}))
ADMIN = Principal(key_id="admin-key", scopes=frozenset({"feedback", "admin:write"}))


async def give(house, dispatch, score=0.0, source="judge", principal=ADMIN):
    request_id = dispatch if isinstance(dispatch, str) else dispatch.request.request_id
    return await house.made.control.apply(
        Feedback(request_id=request_id, score=score, source=source, principal=principal)
    )


def quality(house, member_id: str) -> float:
    return house.made.optimizer.ensemble_manager.beliefs[member_id].quality


async def refused(house, *arguments, **more) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await give(house, *arguments, **more)
    return caught.value


async def test_a_bad_score_lowers_the_members_quality_at_once_and_is_reproduced(make):
    house = await make()
    dispatch = house.answer(model="balanced")
    told = await give(house, dispatch, 0.0)
    assert told["status"] == "recorded"
    assert told["member"] == "balanced"
    assert quality(house, "balanced") == told["quality"] < 0.7
    assert quality(house, "accurate") == 1.0
    await house.busy(100)
    assert (await house.replayed()).exact


async def test_praise_alone_raises_nothing_at_first(make):
    house = await make()
    for number in range(5):
        await give(house, house.answer(model="balanced"), 1.0, source=f"judge-{number}")
    assert quality(house, "balanced") == 0.7


async def test_the_same_score_again_changes_nothing(make):
    house = await make()
    dispatch = house.answer(model="balanced")
    await give(house, dispatch, 0.0)
    once = quality(house, "balanced")
    assert (await give(house, dispatch, 0.0))["status"] == "already_recorded"
    assert quality(house, "balanced") == once


async def test_another_score_by_the_same_source_is_refused(make):
    house = await make()
    dispatch = house.answer(model="balanced")
    await give(house, dispatch, 0.0)
    once = quality(house, "balanced")
    error = await refused(house, dispatch, 1.0)
    assert (error.status, error.code) == (409, "feedback_given")
    assert quality(house, "balanced") == once
    assert (await give(house, dispatch, 0.2, source="someone-else"))["status"] == "recorded"


async def test_an_unknown_request_is_not_found(make):
    house = await make()
    error = await refused(house, "never-seen")
    assert (error.status, error.param) == (404, "request_id")


async def test_a_request_in_flight_has_no_answer_to_score(make):
    house = await make()
    error = await refused(house, house.dispatch())
    assert error.status == 404


async def test_feedback_is_late_by_a_week_at_most(make):
    house = await make()
    early, late = house.answer(), house.answer()
    house.clock.advance(6.9 * DAY_S)
    assert (await give(house, early))["status"] == "recorded"
    house.clock.advance(0.2 * DAY_S)
    error = await refused(house, late)
    assert (error.status, error.code) == (410, "feedback_too_late")


async def test_a_tenant_scores_its_own_requests_only(make):
    house = await make()
    dispatch = house.answer(principal=Principal(tenant="blue"))
    assert (await refused(house, dispatch, principal=RED)).status == 404
    assert (await give(house, dispatch, principal=BLUE))["status"] == "recorded"


async def test_one_tenant_has_a_tenth_of_the_say(make):
    house = await make()
    for number in range(100):
        dispatch = house.answer(model="accurate", principal=Principal(tenant="blue"))
        await give(house, dispatch, 0.0, source=f"s{number}", principal=BLUE)
    assert quality(house, "accurate") >= 0.9 - 1e-9


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan"), float("inf")])
async def test_a_score_outside_its_range_is_refused(make, score):
    house = await make()
    with pytest.raises(ConfigurationError, match="score must lie"):
        await give(house, house.answer(), score)


@pytest.mark.parametrize("source", ["", "a" * 65, "two words", "new\nline"])
async def test_a_source_that_is_no_name_is_refused(make, source):
    house = await make()
    with pytest.raises(ConfigurationError, match="source"):
        await give(house, house.answer(), source=source)


async def test_without_a_journal_feedback_does_not_count_and_says_so(make):
    house = await make()
    dispatch = house.answer()
    await house.chronicle.close()
    error = await refused(house, dispatch)
    assert (error.status, error.code) == (503, "journal_unavailable")


async def test_an_id_that_two_tenants_used_never_hits_the_others_request(make):
    house = await make()
    blue = house.answer(request_id="same", model="fast", principal=BLUE)
    house.answer(request_id="same", model="accurate", principal=RED)
    told = await give(house, blue, 0.0, principal=BLUE)
    assert (told["member"], told["tenant"]) == ("fast", "blue")
    assert quality(house, "accurate") == 1.0
    # Another tenant's score is no earlier score of one's own.
    told = await give(house, blue, 0.9, principal=RED)
    assert (told["status"], told["member"], told["tenant"]) == ("recorded", "accurate", "red")
    error = await refused(house, blue, principal=ADMIN)
    assert (error.status, error.code) == (409, "request_ambiguous")
    assert quality(house, "fast") < 0.4


async def test_a_score_counts_in_the_comparison_of_its_own_tenants_request(make):
    house = await make(experiment={"block_share": 0.0, "conversation_share": 0.5})
    compared = house.made.optimizer.recorder.experiments.conversations
    sides = {}
    for tenant in (BLUE, RED):
        for number in range(40):
            dispatch = house.answer(
                request_id="same", conversation_id=f"{tenant.tenant}{number}", principal=tenant
            )
            if dispatch.control is (tenant is BLUE):
                sides[tenant.tenant] = dispatch.control
                break
    assert sides == {"blue": True, "red": False}
    await give(house, "same", 0.25, principal=BLUE)
    unoptimised = compared()["auto"].sums(Measure.SCORES, optimised=False)
    optimised = compared()["auto"].sums(Measure.SCORES, optimised=True)
    assert (unoptimised, optimised) == ((1, 0.25), (0, 0.0))


async def test_an_id_used_again_means_the_latest_answer_and_each_may_be_scored(make):
    house = await make()
    first = house.answer(request_id="again", model="fast")
    assert (await give(house, first, 0.1))["member"] == "fast"
    second = house.answer(request_id="again", model="balanced")
    told = await give(house, second, 0.8)
    assert (told["status"], told["member"]) == ("recorded", "balanced")
    assert (await give(house, second, 0.8))["status"] == "already_recorded"
    assert (await refused(house, second, 0.1)).code == "feedback_given"


def older(house, request_id: str) -> None:
    """The journal becomes one of version 2, which had a row for each request id of a batch."""
    connection = sqlite3.connect(house.folder / "journal.sqlite3", isolation_level=None)
    connection.executescript(
        "CREATE TABLE requests (request_id TEXT NOT NULL, batch INTEGER NOT NULL,"
        " PRIMARY KEY (request_id, batch)) WITHOUT ROWID;"
        "CREATE INDEX requests_batch ON requests (batch);"
        f"INSERT INTO requests SELECT '{request_id}', batch FROM names;"
        "DROP TABLE names; PRAGMA user_version = 2;"
    )
    connection.close()


async def test_requests_of_an_older_journal_are_found_before_and_after_it_goes_on(make):
    house = await make()
    request_id = house.answer().request.request_id
    await house.close()
    older(house, request_id)
    with Reader(house.folder) as reader:
        before = reader.rows_of(request_id)
        assert before
        assert not reader.rows_of("another")
    again = await make(clock=house.clock)
    again.answer(request_id="new")
    again.journal.flush()
    with Reader(again.folder) as reader:
        assert reader.rows_of(request_id) == before
        assert reader.rows_of("new")
        assert not reader.rows_of("another")


async def test_feedback_of_an_older_journal_still_counts_and_is_not_given_twice(make):
    house = await make()
    dispatch = house.answer(model="balanced")
    await give(house, dispatch, 0.0)
    lowered = quality(house, "balanced")
    await house.close()
    older(house, dispatch.request.request_id)
    connection = sqlite3.connect(house.folder / "journal.sqlite3", isolation_level=None)
    connection.executescript(
        "ALTER TABLE feedback RENAME TO newer;"
        "CREATE TABLE feedback (request_id TEXT NOT NULL, source TEXT NOT NULL, member TEXT NOT NULL,"
        " tenant TEXT NOT NULL, score REAL NOT NULL, at_s REAL NOT NULL,"
        " PRIMARY KEY (request_id, source)) WITHOUT ROWID;"
        "INSERT INTO feedback SELECT request_id, source, member, tenant, score, at_s FROM newer;"
        "DROP TABLE newer; PRAGMA user_version = 1;"
    )
    connection.close()
    with Reader(house.folder) as reader:
        assert [said.score for said in reader.feedback(dispatch.request.request_id)] == [0.0]
    again = await make(clock=house.clock)
    assert quality(again, "balanced") == pytest.approx(lowered)
    assert (await give(again, dispatch, 0.0))["status"] == "already_recorded"
