"""The one process that optimises for all API server processes of an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from loadwise.app.inside.adapters import RuntimeAdapters
from loadwise.app.inside.control import InsideControl
from loadwise.app.inside.members import optimization_inside
from loadwise.app.inside.peers import Peers
from loadwise.app.inside.place import MeetingPlace
from loadwise.app.inside.wire import Note, Report, unpacked
from loadwise.app.journaling import remember
from loadwise.app.sinks import alerting
from loadwise.engines.inside.description import EngineDescription
from loadwise.engines.inside.merging import Views
from loadwise.engines.inside.totals import View as EngineView
from loadwise.errors import RequestError
from loadwise.logs import get_logger
from loadwise.optimizer.beside import Beside
from loadwise.optimizer.desk import Desk
from loadwise.optimizer.fleet import AUTO
from loadwise.optimizer.plan import NO_KEY, Plan, plan_of
from loadwise.ports import Clock, Command, Configure, JsonObject, Recompile, View
from loadwise.settings import Settings

log = get_logger(__name__)
# How often the desk's notes are read, and how often a plan and a view are renewed at least.
TURN_S: Final = 0.1
RENEW_S: Final = 1.0


class Brain:
    """Holds the optimizer; hears every process, its own one included, and publishes the plan they follow."""

    def __init__(
        self,
        settings: Settings,
        description: EngineDescription,
        desk: Desk,
        view: EngineView,
        place: MeetingPlace,
        clock: Clock,
        adapters: RuntimeAdapters | None = None,
    ) -> None:
        # Whether it may be asked.
        self.ready = False
        self._desk = desk
        self._clock = clock
        self._view = view
        self._settings = settings
        self._folder = place.folder
        self.views = Views(
            clock, replica_id=f"{description.model_id}-0", capacity_requests=description.capacity_requests
        )
        made = optimization_inside(settings, description, self.views, clock, place.folder, adapters)
        self._optimizer = made.optimizer
        self._beside = Beside(made.optimizer)
        self._control = InsideControl(made.control, description, self._shown)
        self._peers = Peers(place.socket, self._heard, self._left, self)
        # Errors of loadwise in each process that were counted.
        self._errors: dict[str, int] = {}
        self._serial = 0
        self._published: tuple[Any, ...] = ()
        self._renewed_s = float("-inf")
        # Commands of all processes: one after the other.
        self._commands = asyncio.Lock()

    async def run(self) -> None:
        """Optimises until cancelled."""
        # Sinks end last: a receiver that is down holds up neither the journal's end nor the other processes.
        async with alerting(self._settings.alerts, self._optimizer, self._clock):
            try:
                await self._peers.open()
                await self._remember()
                await self._turn_on()
                while self._desk.off is None:
                    self.turn()
                    await asyncio.sleep(TURN_S)
            finally:
                await self._peers.close()
                await self._optimizer.close()

    async def _remember(self) -> None:
        """Decisions are journaled where the settings name a folder for what is kept."""
        settings, folder = self._settings, self._folder
        if settings.journal.directory is not None:
            # Engines of one machine may share their settings, but not a journal.
            await remember(settings.journal, settings.journal.directory / folder.name, self._optimizer)
        elif "state_dir" in settings.model_fields_set:
            await remember(settings.journal, folder / "journal", self._optimizer)

    async def _turn_on(self) -> None:
        if self._settings.bypass:
            self._optimizer.bypass()
        else:
            await self._optimizer.start_optimization()
        self.ready = True

    def turn(self) -> None:
        """Notes and statistics that waited are taken in; a new plan is published where one is due."""
        for heard in self._desk.take_statistics():
            self._view.note(heard.core, heard.scheduler, heard.iteration, heard.heard_s)
        self._count_errors(self._view.process, self._desk.errors)
        for note in self._desk.take_notes():
            self._beside.take(self._view.process, note)
        now_s = self._clock.monotonic_s()
        self._peers.cut_off_absent(now_s)
        due = now_s - self._renewed_s >= RENEW_S
        if due:
            self._renewed_s = now_s
            self._view.dropped = self._desk.dropped
            self.views.renew(self._view)
            self._beside.ended_below(self._view.process, self._desk.open_from)
        if due or self._state() != self._published:
            self._publish()

    # --- what is asked over HTTP, here or in another process ---

    async def read(self, view: View, options: Mapping[str, Any]) -> JsonObject:
        """A view of the whole."""
        return await self._control.read(view, **options)

    async def apply(self, command: Command) -> JsonObject:
        """The command is applied by all processes, or refused whole."""
        if isinstance(command, Recompile) or (isinstance(command, Configure) and command.dry_run):
            return await self._control.apply(command)
        async with self._commands:
            silent = await self._peers.silent()
            if silent:
                raise RequestError(
                    f"Nothing was changed: the API server process {', '.join(silent)} does not answer. "
                    "Try again.",
                    status=503,
                    kind="server_error",
                    code="process_silent",
                )
            answer = await self._control.apply(command)
            # One that cannot follow now is cut off: it serves untouched until it follows the present plan.
            await self._peers.followed(self._publish())
            return answer

    # --- within ---

    def _state(self) -> tuple[Any, ...]:
        director = self._optimizer.director
        routes = self._optimizer.ensemble_manager.fleet.routes
        strategies = tuple((name, found.name) for name, found in director.strategies.items())
        experiments, now_s = self._optimizer.recorder.experiments, self._clock.monotonic_s()
        drawn = experiments.leaves_alone(now_s), experiments.shares(AUTO, NO_KEY, now_s)
        return strategies, director.config_version, director.running, drawn, id(routes)

    def _publish(self) -> Plan:
        self._serial += 1
        self._published = self._state()
        plan = plan_of(self._optimizer, self._serial)
        self._beside.published(plan)
        self._desk.plan = plan
        self._peers.tell(plan)
        return plan

    def _heard(self, process: str, report: Report) -> None:
        report.view.process = process
        self.views.renew(report.view)
        self._count_errors(process, report.errors)
        for note in report.notes:
            self._take(process, note)
        self._beside.ended_below(process, report.open_from)

    def _count_errors(self, process: str, errors: int) -> None:
        known = self._errors.get(process, 0)
        self._errors[process] = errors
        # Fewer than before: another process of that name.
        new = errors - known if errors >= known else errors
        if new:
            self._optimizer.cycle.survived("engine_process", new)

    def _take(self, process: str, note: Note) -> None:
        engine = next(iter(self._optimizer.ensemble_manager.fleet.engines().values()))
        self._beside.take(process, unpacked(note, engine))

    def _left(self, process: str, hangs: bool) -> None:
        log.warning("api_process_left", process=process, hangs=hangs)
        self.views.leave(process)
        self._beside.left(process, hangs=hangs)

    def _shown(self) -> JsonObject:
        """What the status says of the engine and its processes."""
        views = self.views.present()
        return {
            "processes": sorted(view.process for view in views),
            "optimising_process": self._view.process,
            "plan": self._serial,
            "totals": asdict(self.views.totals()),
            "records": {view.process: view.records for view in views},
            "dropped": sum(view.dropped for view in views),
            "unexplained": self._beside.unexplained,
            "errors": self._desk.errors + self._peers.errors(),
            "switched_off": self._peers.switched_off(),
        }
