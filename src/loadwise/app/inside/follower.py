"""A process that follows the plan of the optimising one, and tells it what it sees."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any

from loadwise.app.inside.brain import RENEW_S, TURN_S
from loadwise.app.inside.wire import (
    Ask,
    Done,
    Follow,
    Hello,
    Note,
    Report,
    There,
    Told,
    Up,
    answer_of,
    asking,
    noted,
    receive_down,
    send,
)
from loadwise.engines.inside.totals import View as EngineView
from loadwise.errors import EngineError, RequestError
from loadwise.optimizer.desk import Desk
from loadwise.ports import Clock, Command, JsonObject, View


class Follower:
    """Its desk decides by the plan it is told; its notes and its view of the engine go on every second."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        desk: Desk,
        view: EngineView,
        clock: Clock,
    ) -> None:
        # Whether it may be asked: it follows a plan.
        self.ready = False
        self._reader = reader
        self._writer = writer
        self._desk = desk
        self._view = view
        self._clock = clock
        self._sending = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Told]] = {}

    async def run(self) -> None:
        """Follows until the optimising process is gone (`EngineError`) or this is cancelled."""
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._send(Hello(self._view.process))
            tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._report())]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # Whoever is cut off serves untouched: others may follow a newer plan by now.
            self._desk.plan = None
            self._writer.close()
            for waiting in self._asked.values():
                if not waiting.done():
                    waiting.set_exception(_gone())
                    # Seen: who asked may have failed to send and wait no more.
                    waiting.exception()

    async def read(self, view: View, options: Mapping[str, Any]) -> JsonObject:
        """A view of the whole, from the optimising process."""
        return await self._ask(Ask(next(self._numbers), view=view.value, options=dict(options)))

    async def apply(self, command: Command) -> JsonObject:
        """The command is applied by all processes, or refused whole."""
        return await self._ask(asking(next(self._numbers), command))

    async def _ask(self, ask: Ask) -> JsonObject:
        waiting = self._asked[ask.number] = asyncio.get_running_loop().create_future()
        try:
            await self._send(ask)
            return answer_of(await waiting)
        finally:
            del self._asked[ask.number]

    async def _listen(self) -> None:
        while True:
            frame = await receive_down(self._reader)
            match frame:
                case Follow():
                    self._desk.plan = frame.plan
                    self.ready = True
                    await self._send(Done(frame.plan.serial))
                case There():
                    await self._send(Done(0))
                case Told():
                    waiting = self._asked.get(frame.number)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(frame)

    async def _report(self) -> None:
        due_s = self._clock.monotonic_s()
        while self._desk.off is None:
            for heard in self._desk.take_statistics():
                self._view.note(heard.core, heard.scheduler, heard.iteration, heard.heard_s)
            notes = [noted(note) for note in self._desk.take_notes()]
            now_s = self._clock.monotonic_s()
            if notes or now_s >= due_s:
                due_s = now_s + RENEW_S
                await self._send(self._said(notes))
            await asyncio.sleep(TURN_S)
        await self._send(self._said([]))
        raise EngineError("Loadwise switched itself off in this process.")

    def _said(self, notes: list[Note]) -> Report:
        desk = self._desk
        self._view.dropped = desk.dropped
        return Report(self._view, notes, desk.open_from, errors=desk.errors, off=desk.off)

    async def _send(self, frame: Up) -> None:
        try:
            async with self._sending:
                await send(self._writer, frame)
        except OSError as error:
            raise EngineError(f"The optimising process is gone: {error}") from None


def _gone() -> RequestError:
    return RequestError(
        "The optimising process of this engine is gone; another one takes over. Try again.",
        status=503,
        kind="server_error",
        code="optimizer_gone",
    )
