"""Other API server processes at the ends of real sockets: one that hangs holds nobody up."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from loadwise.app.inside.follower import Follower
from loadwise.app.inside.peers import UNREAD_BYTES, Peers
from loadwise.app.inside.wire import Ask, Done, Follow, Hello, Report, Told, receive_down, send
from loadwise.engines.inside.totals import View as EngineView
from loadwise.optimizer.desk import Desk
from loadwise.optimizer.plan import plan_of
from loadwise.ports import Command, JsonObject, View
from loadwise.testing import FakeClock

# Longer than a plan lasts.
A_WHILE_S = 3.5


@dataclass
class Hub:
    """The optimising process's side: its peers, and what it heard of them."""

    peers: Peers
    clock: FakeClock
    plan: Callable[[], Any]
    left: list[tuple[str, bool]] = field(default_factory=list)

    def tell(self) -> Any:
        """The next plan, told to all."""
        plan = self.plan()
        self.peers.tell(plan)
        return plan

    def look(self) -> None:
        """What a turn of the optimising process does about those that hang, twice."""
        for _ in range(2):
            self.peers.cut_off_absent(self.clock.monotonic_s())


class Answering:
    """Answers everybody with so many bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    async def read(self, view: View, options: Mapping[str, Any]) -> JsonObject:
        return {"text": "x" * self.size}

    async def apply(self, command: Command) -> JsonObject:
        return {}


class Process:
    """Another process, byte for byte as a test wants it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def hears(self) -> Any:
        return await receive_down(self.reader)

    async def says(self, *frames: Any) -> None:
        for frame in frames:
            await send(self.writer, frame)


@pytest.fixture
async def hub(tmp_path: Path, site_of: Any) -> AsyncIterator[Hub]:
    site, serials = await site_of(), itertools.count(1)
    left: list[tuple[str, bool]] = []
    peers = Peers(
        tmp_path / "s",
        lambda process, report: None,
        lambda process, hangs: left.append((process, hangs)),
        Answering(256 * 1024),
    )
    await peers.open()
    yield Hub(peers, site.clock, lambda: plan_of(site.made.optimizer, next(serials)), left)
    await peers.close()


@pytest.fixture
async def join(hub: Hub, tmp_path: Path, until: Any) -> AsyncIterator[Callable[..., Any]]:
    joined: list[Process] = []

    async def make(name: str) -> Process:
        process = Process(*await asyncio.open_unix_connection(tmp_path / "s"))
        joined.append(process)
        await process.says(Hello(name))
        await until(lambda: name in hub.peers._peers)
        return process

    yield make
    for process in joined:
        process.writer.close()


def report(process: str) -> Report:
    return Report(EngineView(process=process), [], 0)


async def test_of_plans_that_are_not_read_only_the_latest_waits(hub: Hub, join: Any) -> None:
    hangs = await join("two")
    plans = [hub.tell() for _ in range(1_000)]
    first = await hangs.hears()
    assert first == Follow(plans[0])
    await hangs.says(Done(plans[0].serial))
    assert (await hangs.hears()).plan.serial == plans[-1].serial


async def test_a_process_that_hangs_is_asked_no_more_once_its_plan_is_stale(hub: Hub, join: Any) -> None:
    await join("two")
    hub.tell()
    hub.look()
    assert await hub.peers.silent() == ["two"]
    hub.clock.advance(A_WHILE_S)
    hub.look()
    assert await hub.peers.silent() == []
    assert hub.left == [("two", True)]


async def test_a_pause_of_our_own_cuts_nobody_off(hub: Hub, join: Any, until: Any) -> None:
    awake = await join("two")
    plan = hub.tell()
    assert await awake.hears() == Follow(plan)
    await awake.says(Done(plan.serial))
    hub.clock.advance(A_WHILE_S)
    hub.peers.cut_off_absent(hub.clock.monotonic_s())
    await until(lambda: hub.peers._peers["two"].serial == plan.serial)
    hub.look()
    assert hub.left == []


async def test_a_process_whose_socket_is_full_is_cut_off_with_what_it_did_not_read(
    hub: Hub, join: Any, until: Any
) -> None:
    """More than a socket takes and less than may wait: closing it in order would never end."""
    full, awake = await join("two"), await join("three")
    for number in range(20):
        await full.says(Ask(number, view=View.STATUS.value))
    transport = hub.peers._peers["two"]._writer.transport
    await until(lambda: transport.get_write_buffer_size() > 1024**2)
    plan = hub.tell()
    assert await awake.hears() == Follow(plan)
    await awake.says(Done(plan.serial))
    await hub.peers.followed(plan)
    assert hub.left == [("two", True)]
    await until(lambda: transport.get_write_buffer_size() == 0)
    assert list(hub.peers._peers) == ["three"]


async def test_a_process_that_asks_and_never_reads_is_cut_off_by_what_waits(
    hub: Hub, join: Any, until: Any
) -> None:
    endless = await join("two")
    for number in range(UNREAD_BYTES // (256 * 1024) + 20):
        await endless.says(Ask(number, view=View.STATUS.value))
    await until(lambda: hub.left == [("two", True)])


async def test_a_process_that_closed_its_connection_does_not_hang(hub: Hub, join: Any, until: Any) -> None:
    gone = await join("two")
    gone.writer.close()
    await until(lambda: hub.left == [("two", False)])


async def test_a_process_that_was_cut_off_adopts_the_present_plan_when_it_returns(
    hub: Hub, join: Any, until: Any, tmp_path: Path
) -> None:
    await join("two")
    hub.tell()
    hub.clock.advance(A_WHILE_S)
    hub.look()
    plan = hub.tell()
    desk = Desk(hub.clock, engine=None)  # type: ignore[arg-type]  # nothing is decided here
    streams = await asyncio.open_unix_connection(tmp_path / "s")
    follower = Follower(*streams, desk, EngineView(process="two"), hub.clock)
    running = asyncio.create_task(follower.run())
    await until(lambda: desk.plan is not None)
    assert desk.plan.serial == plan.serial
    await hub.peers.followed(plan)
    assert hub.left == [("two", True)]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_answers_arrive_at_who_asked(hub: Hub, join: Any) -> None:
    process = await join("two")
    await process.says(report("two"), Ask(7, view=View.STATUS.value))
    told = await process.hears()
    assert isinstance(told, Told)
    assert (told.number, len(told.value["text"])) == (7, 256 * 1024)
