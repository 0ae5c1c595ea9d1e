"""Loadwise in one API server process: its desk on the engine's loop, and its thread that does the rest."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any, Final

from loadwise.app.inside.adapters import RuntimeAdapters
from loadwise.app.inside.brain import Brain
from loadwise.app.inside.follower import Follower
from loadwise.app.inside.place import MeetingPlace
from loadwise.app.inside.thread import OwnThread, starting
from loadwise.decision.facts import EngineReading
from loadwise.engines.inside import awake
from loadwise.engines.inside.description import EngineDescription
from loadwise.engines.inside.engine import EngineInside
from loadwise.engines.inside.names import SEEN_VERSIONS, seen
from loadwise.engines.inside.totals import View as EngineView
from loadwise.errors import ConfigurationError, EngineError, RequestError
from loadwise.logs import get_logger
from loadwise.optimizer.desk import Desk
from loadwise.ports import Clock, Command, JsonObject, View
from loadwise.settings import Settings

log = get_logger(__name__)
# Between two attempts to find or to become the optimising process.
RETRY_S: Final = 0.2


class Presence:
    """`ports.Control` of one process: what is asked goes to our thread, from there to whoever optimises."""

    def __init__(self, settings: Settings, clock: Clock, process: str | None = None) -> None:
        self._settings = settings
        # Where adapters lie that the engine may be given.
        self.model_dir = settings.model_dir
        self.clock = clock
        self._process = process or str(os.getpid())
        self._description: EngineDescription | None = None
        self._adapters: RuntimeAdapters | None = None
        self._names: dict[str, str] = {}
        self._role: Brain | Follower | None = None
        self._thread = OwnThread(self._live)
        self.desk = Desk(clock, EngineInside(self._unread, None))

    def begin(self, description: EngineDescription, adapters: RuntimeAdapters | None = None) -> None:
        """The engine runs: our thread starts, and the engine's statistics are listened to."""
        self._description = description
        self._adapters = adapters
        self._names = dict.fromkeys(description.names, description.model_id)
        if description.version is None or not seen(description.engine, description.version):
            log.warning(
                "engine_version_not_seen",
                engine=description.engine,
                version=description.version,
                seen=SEEN_VERSIONS.get(description.engine),
                remedy="What its statistics no longer say is shown as absent; serving is not affected.",
            )
        awake.wake(self.desk.record)
        self._thread.start()
        log.info("loadwise_inside", engine=description.engine, version=description.version)

    def names(self) -> Mapping[str, str]:
        """The names that the engine serves, and the members that they stand for."""
        plan = self.desk.plan
        if plan is None or len(plan.route.members) == 1:
            return self._names
        return {**{member.member_id: member.member_id for member in plan.route.members}, **self._names}

    async def close(self) -> None:
        """Our thread has ended, or was left behind after two seconds."""
        awake.sleep()
        self.desk.plan = None
        if self._description is not None:
            await asyncio.to_thread(self._thread.stop)

    # --- ports.Control, on the engine's event loop ---

    async def read(self, view: View, **options: Any) -> JsonObject:
        """A view of the whole engine."""
        return await self._thread.ask(lambda: self._present().read(view, options))

    async def apply(self, command: Command) -> JsonObject:
        """The command is applied by all processes of the engine, or refused whole."""
        return await self._thread.ask(lambda: self._present().apply(command))

    def _present(self) -> Brain | Follower:
        if self.desk.off is not None:
            raise RequestError(
                f"Loadwise switched itself off ({self.desk.off}). The engine serves untouched; restart it to "
                "switch loadwise on again.",
                status=503,
                kind="server_error",
                code="switched_off",
            )
        if self._role is None or not self._role.ready:
            raise starting()
        return self._role

    # --- in our thread ---

    async def _live(self) -> None:
        description = self._description
        if description is None:
            return
        place = MeetingPlace(self._settings.state_dir, description.address)
        view = EngineView(process=self._process)
        try:
            place.prepare()
            while self.desk.off is None:
                await self._one_role(place, description, view)
                await asyncio.sleep(RETRY_S)
        except ConfigurationError as error:
            self.desk.off = str(error)
            log.error("loadwise_not_started", reason=str(error), remedy="Correct it and restart the engine.")
        finally:
            place.leave()

    async def _one_role(self, place: MeetingPlace, description: EngineDescription, view: EngineView) -> None:
        """Optimises for all, or follows who does, until that ends."""
        try:
            if place.take():
                self._role = Brain(
                    self._settings, description, self.desk, view, place, self.clock, self._adapters
                )
            else:
                reader, writer = await asyncio.open_unix_connection(place.socket)
                self._role = Follower(reader, writer, self.desk, view, self.clock)
            await self._role.run()
        except ConfigurationError:
            raise
        except (OSError, EngineError) as error:
            # Whoever optimised is gone, or not there yet: somebody else takes over.
            log.info("optimising_process_sought", reason=repr(error))
        except Exception as error:  # noqa: BLE001 - it is counted and told of; the engine goes on serving
            self.desk.failed("thread", error)
        finally:
            self._role = None

    def _unread(self) -> EngineReading:
        return EngineReading(
            replica_id=self._description.model_id if self._description else "engine",
            read_s=self.clock.monotonic_s(),
        )
