"""What a server of its own tells and keeps is told and kept inside an engine too: alerts and decisions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from loadwise.app.inside.presence import Presence
from loadwise.clock import SystemClock
from loadwise.decision.facts import Ending, Outcome, RequestFacts
from loadwise.ports import Configure, View
from loadwise.settings import load_settings
from loadwise.telemetry.journal.reader import Reader, UnreadableError, journal_file
from loadwise.telemetry.journal.replay import replay
from loadwise.telemetry.journal.store import FILE

# Two members, so that choices depend on chance; nothing of the requests is left alone.
OPTIMIZATION = {"experiment": {"block_share": 0.0, "conversation_share": 0.0}}
MEMBERS = {"stub": {"quality": 0.5}, "tuned": {"quality": 0.6}}


@pytest.fixture
async def engine(tmp_path: Path, describe: Any, until: Any) -> AsyncIterator[Any]:
    """Starts API server processes of one engine; those that a test closes are closed once."""
    opened: list[Presence] = []

    async def start(*names: str, **changes: Any) -> list[Presence]:
        for name in names:
            settings = load_settings(
                **{"state_dir": tmp_path, "engine_members": MEMBERS, "optimization": OPTIMIZATION, **changes}
            )
            presence = Presence(settings, SystemClock(), process=name)
            opened.append(presence)
            presence.begin(describe(processes=2, adapters=("tuned",)))
            await until(lambda: presence.desk.plan is not None)  # noqa: B023 - it is awaited at once
        return opened[-len(names) :]

    yield start
    for presence in opened:
        await presence.close()


def served(presence: Presence, name: str, ending: Ending = Ending.SUCCEEDED) -> dict[str, Any]:
    """One request that this process decides and sees the end of; what was changed of it."""
    facts = RequestFacts(request_id=name, model="auto", explicit={"max_tokens": 50})
    dispatch = presence.desk.dispatch(facts)
    assert dispatch is not None
    outcome = Outcome(
        request_id=name,
        member_id=dispatch.member_id,
        replica_id=dispatch.replica_id,
        ending=ending,
        finished_s=dispatch.started_s + 0.01,
        total_s=0.01,
        output_tokens=5,
        status=200 if ending is Ending.SUCCEEDED else 500,
    )
    presence.desk.finish(dispatch, lambda: outcome)
    return dict(dispatch.changes)


async def outcomes(presence: Presence, number: int) -> Any:
    """The status once so many outcomes have arrived."""
    async with asyncio.timeout(20):
        while True:
            status = await presence.read(View.STATUS)
            if sum(model["outcomes"] for model in status["ensemble"]["models"]) == number:
                return status
            await asyncio.sleep(0.02)


async def test_decisions_of_every_process_are_journaled_and_decided_again_the_same(
    engine: Any, tmp_path: Path
) -> None:
    one, two = await engine("one", "two")
    for number in range(20):
        served(one, f"a{number}")
        served(two, f"b{number}")
    await outcomes(one, 40)
    await one.apply(Configure(changes={"ceilings": {"max_tokens": 7}}))
    assert served(one, "c") == {"max_tokens": 7}
    status = await outcomes(one, 41)
    assert status["inside"]["unexplained"] == 0
    await one.close()
    await two.close()
    with Reader(tmp_path) as reader:
        found = replay(reader.batches())
    assert (found.decisions, found.outcomes, found.dropped, found.skipped) == (41, 41, 0, 0)
    assert found.exact, found.differences


async def test_history_is_there_again_after_a_restart(engine: Any) -> None:
    (one,) = await engine("one")
    for number in range(5):
        served(one, f"a{number}")
    await outcomes(one, 5)
    await one.close()
    (again,) = await engine("again")
    report = await again.read(View.REPORT)
    assert report["total_requests"] == 5


async def test_nothing_is_journaled_where_no_folder_is_named(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    settings = load_settings(engine_members=MEMBERS, optimization=OPTIMIZATION)
    assert settings.state_dir.is_relative_to(tmp_path)
    presence = Presence(settings, SystemClock(), process="one")
    (other,) = await engine("other", state_dir=tmp_path / "other")
    assert (await other.read(View.STATUS))["journal"] is not None
    presence.begin(other._description)
    status = await shown(presence)
    await presence.close()
    assert status["journal"] is None
    assert not list(settings.state_dir.glob(f"**/{FILE}"))


async def shown(presence: Presence) -> Any:
    async with asyncio.timeout(20):
        while presence.desk.plan is None:
            await asyncio.sleep(0.01)
        return await presence.read(View.STATUS)


async def test_a_journals_own_folder_holds_one_for_each_engine(engine: Any, tmp_path: Path) -> None:
    (one,) = await engine("one", journal={"directory": tmp_path / "kept"})
    path = Path((await one.read(View.STATUS))["journal"]["path"])
    assert path.parent == tmp_path / "kept"
    assert journal_file(tmp_path / "kept") == path / FILE


def test_of_journals_of_several_engines_one_is_to_be_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / "inside" / name / "journal"
        folder.mkdir(parents=True)
        (folder / FILE).touch()
    with pytest.raises(UnreadableError, match="several engines"):
        journal_file(tmp_path)
    assert journal_file(tmp_path / "inside" / "a") == tmp_path / "inside" / "a" / "journal" / FILE


async def test_a_disk_that_takes_nothing_is_told_of_and_the_engine_goes_on(
    engine: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (one,) = await engine("one", journal={"directory": tmp_path / "file"})
    served(one, "a")
    status = await outcomes(one, 1)
    assert status["journal"]["fault"] is not None
    assert one.desk.errors == 0


async def test_an_error_of_ours_inside_an_engine_is_counted_and_told(engine: Any) -> None:
    (one,) = await engine("one")
    await shown(one)
    one.desk.failed("answer", RuntimeError("a bug of ours"))
    async with asyncio.timeout(20):
        told: set[str] = set()
        while "engine_process" not in told:
            await asyncio.sleep(0.05)
            alerts = (await one.read(View.STATUS))["alerts"]
            told = {alert["subject"] for alert in alerts if alert["name"] == "optimizer_fault"}


@pytest.fixture
async def receiver() -> AsyncIterator[Any]:
    """Somebody's webhook and Alertmanager: what they were sent, by path."""
    heard: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        await heard.put((request.path, await request.json()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/{path:.*}", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    heard.url = f"http://127.0.0.1:{runner.addresses[0][1]}"  # type: ignore[attr-defined]
    yield heard
    await runner.cleanup()


async def test_an_alert_inside_an_engine_reaches_every_sink_of_its_settings(
    engine: Any, receiver: Any, caplog: pytest.LogCaptureFixture
) -> None:
    alerts = {"webhooks": [{"url": receiver.url + "/hook"}], "alertmanagers": [receiver.url]}
    # A loop that turns once in ten minutes: what is told is told by the watch.
    one, two = await engine(
        "one", "two", alerts=alerts, optimization={**OPTIMIZATION, "tuning_interval_sec": 600}
    )
    for number in range(60):
        served(one, f"a{number}", Ending.FAILED)
        served(two, f"b{number}", Ending.FAILED)
    told: dict[str, set[str]] = {"/hook": set(), "/api/v2/alerts": set()}
    async with asyncio.timeout(30):
        while not all("error_rate" in str(names) for names in told.values()):
            path, body = await receiver.get()
            told[path].update(named(body))
    assert "error_rate" in caplog.text


def named(body: Any) -> list[str]:
    """The alerts that a receiver was told of."""
    if isinstance(body, dict):
        return [body["name"]]
    return [each["labels"]["alertname"] for each in body]
