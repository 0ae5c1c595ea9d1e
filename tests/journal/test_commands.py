"""`loadwise replay`, `explain` and `report --what-if`, on journals that an optimizer wrote."""

from __future__ import annotations

import json
import sqlite3
import zlib
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from loadwise.cli.application import app
from loadwise.decision.facts import Ending, Principal
from loadwise.errors import LoadwiseError, RequestError
from loadwise.telemetry.journal import lean, records
from loadwise.telemetry.journal.bodies import packed


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "200"})


def values(*arguments: str | Path) -> Any:
    ended = run(*arguments, "--json")
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


@pytest.fixture
async def house(make):
    found = await make()
    await found.busy(600)
    return found


@pytest.fixture
def written(house) -> Path:
    house.journal.flush()
    return house.folder


def other(tmp_path: Path, **optimization: object) -> Path:
    path = tmp_path / "other.yaml"
    path.write_text(json.dumps({"optimization": optimization}), encoding="utf-8")
    return path


def test_a_replay_reproduces_everything_and_ends_well(written):
    found = values("replay", written)
    assert found["exact"]
    assert found["decisions"]["replayed"] == found["decisions"]["same"] > 500
    assert found["steps"]["replayed"] == found["steps"]["same"] == 25
    assert "exact" in run("replay", written.parent).output


def test_a_journal_that_was_tampered_with_is_not_reproduced(house, written):
    connection = sqlite3.connect(written / "journal.sqlite3", isolation_level=None)
    number, rows = next(
        (number, rows)
        for number, body in connection.execute("SELECT id, body FROM batches")
        for rows in [lean.decoded(zlib.decompress(body))]
        if any(isinstance(row, records.Decided) and row.dispatched is not None for row in rows)
    )
    lied = [row if not isinstance(row, records.Decided) else _other_draw(row) for row in rows]
    body = packed(lean.encoded(lied))
    connection.execute("UPDATE batches SET body = ? WHERE id = ?", (body, number))
    connection.close()
    ended = run("replay", written, "--json")
    assert ended.exit_code == 1
    assert json.loads(ended.stdout)["differences"]


def _other_draw(row: Any) -> Any:
    return replace(row, choice=row.choice._replace(member_id="nobody")) if row.dispatched else row


def test_the_same_configuration_decides_alike(written, tmp_path):
    same = other(
        tmp_path, ensemble_strategy="weighted_voting", experiment={"block_share": 0.1, "block_sec": 10.0}
    )
    found = values("replay", written, "--config", same)
    assert found["same_member"] == found["same_tuning"] == found["decisions"] > 500
    assert found["members"] == found["strategies"] == []


def test_another_configuration_shows_where_it_differs(written, tmp_path):
    found = values("replay", written, "--config", other(tmp_path, ensemble_strategy="best_of_n"))
    assert found["same_member"] < found["decisions"]
    assert found["members"]
    shares = found["shares"]
    assert sum(share["written"] for share in shares.values()) == pytest.approx(1.0)
    assert sum(share["other"] for share in shares.values()) == pytest.approx(1.0)
    shown = run("replay", written, "--config", other(tmp_path, ensemble_strategy="best_of_n"))
    assert "Differing members" in shown.output


def test_the_default_member_alone_would_answer_everything_that_is_free(written, tmp_path):
    found = values("replay", written, "--config", other(tmp_path, enable_ensemble=False))
    shares = found["shares"]["accurate"]
    assert shares["other"] > 0.7 > shares["written"]


def test_a_story_tells_who_answered_and_why(house, written):
    dispatch = house.answer(conversation_id="abc")
    house.journal.flush()
    story = values("explain", dispatch.request.request_id, "--journal", written)
    (attempt,) = story["attempts"]
    assert attempt["choice"]["member"] == dispatch.member_id
    assert attempt["choice"]["reason"] == dispatch.reason
    entry = attempt["entry"]
    assert (entry["reason"], entry["in_flight_elsewhere"]) == ("room", 0)
    assert entry["places"] is not None
    assert attempt["choice"]["propensity"] == dispatch.propensity
    assert {each["member"] for each in attempt["choice"]["candidates"]} == {"fast", "balanced", "accurate"}
    assert sum(each["propensity"] for each in attempt["choice"]["candidates"]) == pytest.approx(1.0)
    assert all(each["outcomes"] is not None for each in attempt["choice"]["candidates"])
    assert attempt["ended"]["ending"] == "succeeded"
    assert attempt["ended"]["time_to_first_token_s"] == 0.05
    assert {name: change["value"] for name, change in attempt["changes"].items()} == dict(dispatch.changes)
    told = run("explain", dispatch.request.request_id, "--journal", written).output
    assert f"{dispatch.member_id} was chosen: {dispatch.reason}" in told
    assert "It succeeded after" in told


@pytest.mark.parametrize(
    ("exact", "bound", "told"),
    [(20, 20, "a prompt of 20 tokens"), (None, 300, "at most 300 tokens"), (None, None, "unknown length")],
)
def test_a_story_claims_no_length_that_was_not_counted(house, written, exact, bound, told):
    dispatch = house.answer(prompt_tokens=exact, prompt_tokens_bound=bound)
    house.journal.flush()
    assert told in run("explain", dispatch.request.request_id, "--journal", written).output


def test_a_story_names_in_flight_what_was_in_flight(house, written):
    for dispatch in list(house.open):
        house.end(dispatch)
    first = house.answer()
    waiting = house.dispatch()
    second = house.answer()
    house.journal.flush()
    assert "in flight: nothing." in run("explain", first.request.request_id, "--journal", written).output
    told = run("explain", second.request.request_id, "--journal", written).output
    assert f"in flight: {waiting.member_id} 1." in told


def test_a_story_of_a_retry_has_every_attempt(house, written):
    first = house.dispatch()
    house.end(first, Ending.FAILED, status=502)
    second = house.made.director.dispatch(first.request, frozenset({first.replica_id}))
    house.open.append(second)
    house.end(second)
    house.journal.flush()
    story = values("explain", first.request.request_id, "--journal", written)
    failed, answered = story["attempts"]
    assert (failed["ended"]["ending"], answered["ended"]["ending"]) == ("failed", "succeeded")
    assert answered["choice"]["without"] == [first.replica_id]
    assert answered["choice"]["member"] != failed["choice"]["member"]


def test_a_request_that_was_refused_has_a_story(house, written):
    with pytest.raises(RequestError):
        house.dispatch(prompt_tokens=10_000)
    house.journal.flush()
    story = values("explain", f"r{house.sent}", "--journal", written)
    assert story["refusals"][0]["status"] == 400
    told = run("explain", f"r{house.sent}", "--journal", written).output
    assert "Nobody could answer" in told
    assert "refused with 400" in told


def test_an_unknown_request_is_said(written):
    ended = run("explain", "unheard-of", "--journal", written)
    assert isinstance(ended.exception, LoadwiseError)
    assert "knows no request 'unheard-of'" in str(ended.exception)


def test_a_place_without_a_journal_is_said(tmp_path):
    ended = run("replay", tmp_path / "nothing")
    assert isinstance(ended.exception, LoadwiseError)
    assert "There is no journal" in str(ended.exception)


async def test_a_log_that_explored_supports_an_estimate(make, tmp_path):
    house = await make()
    for _ in range(25):
        await house.busy(40)
        house.clock.advance(10.0)
    house.journal.flush()
    written = house.folder
    config = other(tmp_path, ensemble_strategy="weighted_voting", load_threshold_high=0.7)
    found = values("report", "--what-if", config, "--journal", written)
    figure = found["figures"]["failed"]
    assert figure["supported"], figure["missing"]
    for estimate in ("logged", "inverse_propensity", "doubly_robust"):
        assert figure[estimate]["low"] <= figure[estimate]["value"] <= figure[estimate]["high"]
    shown = run("report", "--what-if", config, "--journal", written)
    assert "share queues" in shown.output.replace("\n", " ")


async def test_a_log_that_did_not_explore_supports_none_and_says_so(make, tmp_path):
    house = await make(enable_ensemble=False)
    await house.busy(600)
    house.journal.flush()
    config = other(tmp_path, ensemble_strategy="weighted_voting")
    found = values("report", "--what-if", config, "--journal", house.folder)
    figure = found["figures"]["failed"]
    assert not figure["supported"]
    assert figure["doubly_robust"] is None
    assert any("no chance when logged" in reason for reason in figure["missing"])
    shown = run("report", "--what-if", config, "--journal", house.folder).output.replace("\n", " ")
    assert "not estimated, because" in shown


async def test_an_id_that_several_requests_carried_tells_which_was_meant(make):
    house = await make()
    blue, red = Principal(tenant="blue"), Principal(tenant="red")
    members = [("fast", blue), ("accurate", red), ("balanced", blue)]
    for member, principal in members:
        house.answer(request_id="same", model=member, principal=principal)
    house.journal.flush()

    def story(*options: str) -> Any:
        return values("explain", "same", "--journal", house.folder, *options)

    latest = story()
    assert [each["tenant"] for each in latest["carried_by"]] == ["blue", "red", "blue"]
    assert (latest["number"], latest["attempts"][0]["choice"]["member"]) == (3, "balanced")
    reds = story("--tenant", "red")
    assert [attempt["facts"]["tenant"] for attempt in reds["attempts"]] == ["red"]
    assert reds["attempts"][0]["choice"]["member"] == "accurate"
    assert story("--number", "1")["attempts"][0]["choice"]["member"] == "fast"
    told = run("explain", "same", "--journal", house.folder).output
    assert "3 requests carried this id; this is number 3" in told
    missing = run("explain", "same", "--journal", house.folder, "--tenant", "green")
    assert isinstance(missing.exception, LoadwiseError)
    assert "green" in str(missing.exception)
