"""The other API server processes, as the optimising one knows them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from loadwise.app.inside.wire import (
    Ask,
    Done,
    Down,
    Follow,
    Hello,
    Report,
    There,
    Told,
    command_of,
    faulty,
    packed,
    receive_up,
    told,
    view_of,
)
from loadwise.errors import EngineError, LoadwiseError
from loadwise.logs import get_logger
from loadwise.optimizer.desk import PLAN_LASTS_S
from loadwise.optimizer.plan import Plan
from loadwise.ports import Command, JsonObject, View

log = get_logger(__name__)
# Together less than the second within which all processes follow a change.
THERE_WITHIN_S: Final = 0.4
FOLLOWED_WITHIN_S: Final = 0.5
# What a process may leave unread of what it was told; a report of a whole history has some megabytes.
UNREAD_BYTES: Final = 16 * 1024**2


class Answering(Protocol):
    """Who answers what a process was asked over HTTP."""

    async def read(self, view: View, options: Mapping[str, Any]) -> JsonObject:
        """A view of the whole."""
        ...

    async def apply(self, command: Command) -> JsonObject:
        """The command is applied whole or refused."""
        ...


class Peer:
    """One other process and the way to it. Nothing here waits for it to read."""

    def __init__(self, process: str, writer: asyncio.StreamWriter) -> None:
        self.process = process
        self.report: Report | None = None
        # Whether it was cut off: then it may still be serving.
        self.hangs = False
        # The number of the plan that it follows.
        self.serial = -1
        self.changed = asyncio.Event()
        self._writer = writer
        # The plan that it was told and does not follow yet, and the latest one after that.
        self._told: Plan | None = None
        self._next: Plan | None = None

    def send(self, frame: Down) -> None:
        """The frame is on its way, whole; who leaves too much unread is cut off."""
        self._writer.write(packed(frame))
        if self._writer.transport.get_write_buffer_size() > UNREAD_BYTES:
            self.cut_off()

    def follow(self, plan: Plan) -> None:
        """It is told of the plan, or of a later one, as soon as it follows the one before."""
        if self._told is not None:
            self._next = plan
            return
        self._told = plan
        self.send(Follow(plan))

    def done(self, serial: int) -> None:
        """It says that it is there, or which plan it follows."""
        self.serial = max(self.serial, serial)
        self.changed.set()
        if self._told is None or self.serial < self._told.serial:
            return
        self._told, plan = None, self._next
        if plan is not None:
            self._next = None
            self.follow(plan)

    def absent(self, now_s: float) -> bool:
        """Whether it let a plan go stale; by then its desk follows that one no more, nor one before."""
        return self._told is not None and now_s - self._told.made_s > PLAN_LASTS_S

    def cut_off(self) -> None:
        """The connection has ended, whatever was not read yet; it comes back by itself."""
        self.hangs = True
        self._writer.transport.abort()

    async def reached(self, serial: int) -> None:
        """Returns once it follows that plan or a later one."""
        while self.serial < serial:
            self.changed.clear()
            await self.changed.wait()


class Peers:
    """Listens for the other processes of the engine and keeps what they say apart."""

    def __init__(
        self,
        socket: Path,
        heard: Callable[[str, Report], None],
        left: Callable[[str, bool], None],
        answering: Answering,
    ) -> None:
        self._socket = socket
        self._heard = heard
        self._left = left
        self._answering = answering
        self._peers: dict[str, Peer] = {}
        self._plan: Plan | None = None
        self._suspects: set[Peer] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listens; a socket that a dead process left is taken over."""
        self._socket.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._meet, self._socket)
        self._socket.chmod(0o600)

    async def close(self) -> None:
        """Nobody is listened to any more."""
        if self._server is not None:
            self._server.close()
        for peer in list(self._peers.values()):
            peer.cut_off()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def tell(self, plan: Plan) -> None:
        """Every process hears of the plan."""
        self._plan = plan
        for peer in self._peers.values():
            peer.follow(plan)

    def cut_off_absent(self, now_s: float) -> None:
        """Processes that hang are connected no more: changes no longer wait for them."""
        absent = {peer for peer in self._peers.values() if peer.absent(now_s)}
        # Looked at twice: after a pause of our own, what they said meanwhile is read first.
        for peer in absent & self._suspects:
            self._cut_off(peer)
        self._suspects = absent

    async def silent(self) -> list[str]:
        """The processes that do not say at once that they are there."""
        return await self._waited(self._there, THERE_WITHIN_S)

    async def followed(self, plan: Plan) -> None:
        """All follow the plan; those that do not are cut off, and come back by themselves."""
        for process in await self._waited(lambda peer: peer.reached(plan.serial), FOLLOWED_WITHIN_S):
            self._cut_off(self._peers[process])

    def errors(self) -> int:
        """Errors of loadwise in all other processes."""
        return sum(peer.report.errors for peer in self._peers.values() if peer.report is not None)

    def switched_off(self) -> dict[str, str]:
        """Processes in which loadwise switched itself off, and why."""
        reports = {name: peer.report for name, peer in self._peers.items()}
        return {name: report.off for name, report in reports.items() if report is not None and report.off}

    async def _there(self, peer: Peer) -> None:
        peer.changed.clear()
        peer.send(There())
        await peer.changed.wait()

    async def _waited(self, action: Callable[[Peer], Any], within_s: float) -> list[str]:
        """The processes for which an action was not over in time."""
        tasks = {name: asyncio.create_task(action(peer)) for name, peer in self._peers.items()}
        if not tasks:
            return []
        _, late = await asyncio.wait(tasks.values(), timeout=within_s)
        for task in late:
            task.cancel()
        return [name for name, task in tasks.items() if task in late and name in self._peers]

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: Peer | None = None
        try:
            hello = await receive_up(reader)
            if not isinstance(hello, Hello):
                raise EngineError("Another process did not say who it is.")
            peer = self._peers[hello.process] = Peer(hello.process, writer)
            if self._plan is not None:
                peer.follow(self._plan)
            while True:
                self._on(peer, await receive_up(reader))
        except EngineError as error:
            log.info("api_process_disconnected", reason=str(error))
        finally:
            writer.close()
            if peer is not None:
                self._gone(peer)

    def _cut_off(self, peer: Peer) -> None:
        log.error("api_process_cut_off", process=peer.process, plan=peer.serial)
        peer.cut_off()
        self._gone(peer)

    def _gone(self, peer: Peer) -> None:
        """It is told once that the process is here no more, and whether it may still be serving."""
        if self._peers.get(peer.process) is peer:
            del self._peers[peer.process]
            self._left(peer.process, peer.hangs)

    def _on(self, peer: Peer, frame: Hello | Report | Ask | Done) -> None:
        match frame:
            case Report():
                peer.report = frame
                self._heard(peer.process, frame)
            case Done():
                peer.done(frame.serial)
            case Ask():
                self._spawn(self._answer(peer, frame))
            case Hello():
                raise EngineError("Another process said twice who it is.")

    async def _answer(self, peer: Peer, ask: Ask) -> None:
        peer.send(await self._told(ask))

    async def _told(self, ask: Ask) -> Told:
        try:
            view = view_of(ask)
            if view is not None:
                return told(ask.number, await self._answering.read(view, ask.options))
            return told(ask.number, await self._answering.apply(command_of(ask)))
        except (LoadwiseError, ValueError) as error:
            return faulty(ask.number, error)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
