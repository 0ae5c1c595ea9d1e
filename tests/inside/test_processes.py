"""Several API server processes of one engine: one optimizes, all follow, nothing is lost or counted twice."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from loadwise.app.inside import brain
from loadwise.app.inside.presence import Presence
from loadwise.clock import SystemClock
from loadwise.decision.facts import Ending, Outcome, RequestFacts
from loadwise.engines.inside import awake
from loadwise.errors import ConfigurationError, LoadwiseError, RequestError
from loadwise.ports import Configure, Recompile, Start, Stop, View
from loadwise.settings import load_settings

CEILING = Configure(changes={"ceilings": {"max_tokens": 7}})


@pytest.fixture
async def processes(tmp_path, describe, until) -> AsyncIterator[Any]:
    opened: list[Presence] = []

    async def start(*names: str) -> list[Presence]:
        for name in names:
            settings = load_settings(
                state_dir=tmp_path,
                optimization={"experiment": {"block_share": 0.0, "conversation_share": 0.0}},
            )
            presence = Presence(settings, SystemClock(), process=name)
            opened.append(presence)
            presence.begin(describe(processes=2))
            # The first one optimizes.
            await until(lambda: presence.desk.plan is not None)  # noqa: B023 - it is awaited at once
        return opened

    yield start
    for presence in opened:
        await presence.close()


def served(presence: Presence, seconds: float = 0.01, tokens: int = 5) -> None:
    """One request that this process decides and sees the end of."""
    dispatch = presence.desk.dispatch(RequestFacts(request_id="r", explicit={"max_tokens": 50}))
    assert dispatch is not None
    outcome = Outcome(
        request_id="r",
        member_id=dispatch.member_id,
        replica_id=dispatch.replica_id,
        ending=Ending.SUCCEEDED,
        finished_s=dispatch.started_s + seconds,
        total_s=seconds,
        output_tokens=tokens,
        status=200,
    )
    presence.desk.finish(dispatch, lambda: outcome)


def record(presence: Presence, running: int | None, prompt: int, output: int) -> None:
    """What the engine's statistics say after an iteration."""
    scheduler = None if running is None else SimpleNamespace(num_running_reqs=running, num_waiting_reqs=0)
    iteration = SimpleNamespace(
        num_prompt_tokens=prompt,
        num_generation_tokens=output,
        time_to_first_tokens_iter=[0.1],
        inter_token_latencies_iter=[0.01] * 4,
    )
    presence.desk.record(0, scheduler, iteration)


async def applied(presence: Presence, command: Any) -> Any:
    """What the command answers; on a busy machine a process may be too slow to follow at the first try."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await presence.apply(command)
            except RequestError as refusal:
                if refusal.code != "process_silent":
                    raise


async def status_where(presence: Presence, holds: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(20):
        while not holds(status := await presence.read(View.STATUS)):
            await asyncio.sleep(0.02)
    return status


async def test_outcomes_of_all_processes_are_counted_once(processes) -> None:
    one, two = await processes("one", "two")
    for _ in range(7):
        served(one)
    for _ in range(5):
        served(two)
    status = await status_where(one, lambda s: s["ensemble"]["models"][0]["outcomes"] == 12)
    assert status["in_flight"] == 0
    assert status["inside"]["processes"] == ["one", "two"]


async def test_all_processes_show_the_same_whole(processes) -> None:
    one, two = await processes("one", "two")
    record(one, 3, 100, 40)
    record(two, None, 20, 2)
    holds = lambda s: s["inside"]["totals"]["prompt_tokens"] == 120  # noqa: E731 - it is used twice
    for presence in (one, two):
        status = await status_where(presence, holds)
        assert status["inside"]["totals"]["output_tokens"] == 42
        assert status["engines"]["stub-0"]["running_requests"] == 3
        assert status["engines"]["stub-0"]["capacity_requests"] == 8


@pytest.mark.parametrize("asked", [0, 1])
async def test_a_change_is_applied_by_all_processes_before_it_is_answered(processes, asked, until) -> None:
    both = await processes("one", "two")
    answer = await applied(both[asked], CEILING)
    assert answer["version"] == 2
    for presence in both:
        # One that was too slow was cut off: it serves untouched until it follows, never by an older plan.
        plan = presence.desk.plan
        assert plan is None or plan.config_version == 2
        await until(lambda: presence.desk.plan is not None)  # noqa: B023 - it is awaited at once
        dispatch = presence.desk.dispatch(RequestFacts(request_id="r", explicit={"max_tokens": 50}))
        assert dispatch.changes == {"max_tokens": 7}


async def test_stop_and_start_reach_all_processes(processes, until) -> None:
    both = await processes("one", "two")
    await applied(both[1], Stop())
    await until(lambda: [p.desk.plan and p.desk.plan.running for p in both] == [False, False])
    await applied(both[0], Start())
    await until(lambda: [p.desk.plan and p.desk.plan.running for p in both] == [True, True])


async def test_a_change_is_refused_whole_while_a_process_is_silent(processes, until) -> None:
    one, two = await processes("one", "two")
    hung, goes_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def hang() -> None:
        loop.call_soon_threadsafe(hung.set)
        while not goes_on.is_set():
            # Blocks the other process's thread, as a bug of ours might.
            os.sched_yield()

    held = asyncio.create_task(two._thread.ask(hang))
    await hung.wait()
    with pytest.raises(RequestError, match="Nothing was changed") as refusal:
        await one.apply(CEILING)
    goes_on.set()
    await held
    assert refusal.value.status == 503
    assert (await one.read(View.STATUS))["config_version"] == 1
    assert two.desk.plan.config_version == 1


async def test_a_process_that_hangs_longer_holds_no_change_up_and_adopts_it_when_it_returns(
    processes, until
) -> None:
    one, two = await processes("one", "two")
    goes_on = threading.Event()

    async def hang() -> None:
        # Blocks the other process's thread, as a bug of ours might.
        goes_on.wait(30)

    held = asyncio.create_task(two._thread.ask(hang))
    answer = await applied(one, CEILING)
    assert answer["version"] == 2
    # Its desk soon does not decide by a plan that nobody renews.
    await until(lambda: two.desk.followed is None)
    assert (await one.read(View.STATUS))["inside"]["processes"] == ["one"]
    served(one)
    goes_on.set()
    await asyncio.gather(held, return_exceptions=True)
    await until(lambda: two.desk.plan is not None and two.desk.plan.config_version == 2)
    served(two)
    status = await status_where(one, lambda s: s["ensemble"]["models"][0]["outcomes"] == 2)
    assert status["inside"]["processes"] == ["one", "two"]


async def test_errors_of_a_change_arrive_in_every_process(processes) -> None:
    _, two = await processes("one", "two")
    with pytest.raises(LoadwiseError, match="no_such_setting") as refusal:
        await two.apply(Configure(changes={"no_such_setting": 1}))
    assert refusal.value.status == 400


async def test_a_process_that_starts_again_adopts_the_present_version(processes, until) -> None:
    one, two = await processes("one", "two")
    await applied(one, CEILING)
    await two.close()
    *_, again = await processes("three")
    await until(lambda: again.desk.plan is not None and again.desk.plan.config_version == 2)
    assert again.desk.plan.policy.ceilings == {"max_tokens": 7}


async def test_another_process_takes_over_with_the_applied_version(processes, until) -> None:
    one, two = await processes("one", "two")
    await applied(one, CEILING)
    await one.close()
    status = await status_where_present(two)
    assert status["inside"]["optimising_process"] == "two"
    assert status["config_version"] == 2


async def status_where_present(presence: Presence) -> Any:
    async with asyncio.timeout(20):
        while True:
            try:
                status = await presence.read(View.STATUS)
                if status["inside"]["optimising_process"] == presence._process:
                    return status
            except RequestError:
                await asyncio.sleep(0.05)


async def test_what_a_process_left_unanswered_failed(processes) -> None:
    one, two = await processes("one", "two")
    two.desk.dispatch(RequestFacts(request_id="r"))
    await status_where(one, lambda s: s["in_flight"] == 1)
    await two.close()
    status = await status_where(one, lambda s: s["in_flight"] == 0)
    assert status["ensemble"]["models"][0]["error_rate"] == 1.0


async def test_three_errors_in_our_thread_switch_loadwise_off_and_it_says_so(
    processes, monkeypatch, until
) -> None:
    (one,) = await processes("one")

    def broken(_: Any) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(brain.Brain, "turn", broken)
    await until(lambda: one.desk.off is not None)
    assert not one.desk.awake
    assert one.desk.dispatch(RequestFacts(request_id="r")) is None
    with pytest.raises(RequestError, match="a bug of ours") as refusal:
        await one.read(View.STATUS)
    assert refusal.value.code == "switched_off"


async def test_notes_that_nobody_reads_are_bounded_and_counted(site_of) -> None:
    site = await site_of()
    for _ in range(20_000):
        site.desk.record(0, None, None)
    assert len(site.desk.heard) < 20_000
    assert site.desk.dropped + len(site.desk.heard) == 20_000


async def test_an_engine_version_that_was_never_seen_is_warned_of_and_served(
    tmp_path, describe, until, caplog
) -> None:
    settings = load_settings(state_dir=tmp_path)
    presence = Presence(settings, SystemClock())
    presence.begin(describe(version="99.1"))
    await until(lambda: presence.desk.plan is not None)
    served(presence)
    status = await status_where(presence, lambda s: s["ensemble"]["models"][0]["outcomes"] == 1)
    await presence.close()
    assert status["inside"]["version"] == "99.1"
    (warning,) = [r for r in caplog.records if "engine_version_not_seen" in r.getMessage()]
    assert warning.levelname == "WARNING"


async def test_the_engine_builds_its_models_itself(processes) -> None:
    (one,) = await processes("one")
    with pytest.raises(RequestError, match="compiles its models itself") as refusal:
        await one.apply(Recompile())
    assert refusal.value.status == 409
    stats = (await one.read(View.STATUS))["compilation_stats"]
    assert set(stats) == {"stub"}


async def test_the_meeting_place_is_private(processes, tmp_path) -> None:
    await processes("one")
    (folder,) = (tmp_path / "inside").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o600


async def test_a_folder_that_cannot_be_used_leaves_the_engine_alone(tmp_path, describe, until) -> None:
    (tmp_path / "file").write_text("")
    settings = load_settings(state_dir=tmp_path / "file")
    presence = Presence(settings, SystemClock())
    presence.begin(describe())
    await until(lambda: presence.desk.off is not None)
    assert "state_dir" in presence.desk.off
    await presence.close()


async def test_a_member_that_the_engine_does_not_serve_is_named(tmp_path, describe, until) -> None:
    settings = load_settings(state_dir=tmp_path, engine_members={"nobody": {}})
    presence = Presence(settings, SystemClock())
    presence.begin(describe())
    await until(lambda: presence.desk.off is not None)
    assert "'nobody'" in presence.desk.off
    await presence.close()


def test_statistics_are_heard_only_while_somebody_listens() -> None:
    heard: list[Any] = []
    awake.tell(0, None, None)
    awake.wake(lambda *record: heard.append(record))
    awake.tell(1, None, None)
    awake.sleep()
    awake.tell(2, None, None)
    assert heard == [(1, None, None)]


def test_a_socket_path_that_no_system_takes_is_refused(tmp_path) -> None:
    from loadwise.app.inside.place import MeetingPlace

    with pytest.raises(ConfigurationError, match="shorter state_dir"):
        MeetingPlace(tmp_path / ("a" * 100), "x").prepare()
