"""The control plane's way in: views are read, commands applied whole or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from loadwise.errors import ConfigurationError, UnknownNameError
from loadwise.logs import get_logger
from loadwise.optimizer import live, reporting, situation, views
from loadwise.optimizer.fleet import MemberParts
from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer
from loadwise.ports import AddModel, Command, Configure, Feedback, JsonObject, Recompile, Start, Stop, View
from loadwise.telemetry.report_folder import ReportFolder, ReportLimits

log = get_logger(__name__)
COMPILES_ITSELF: Final = (
    "its engine compiles it when it starts, and loadwise cannot rebuild it there. 'loadwise compile' finds "
    "the fastest form of a model folder, which the next start serves; engine: torch serves it with builds "
    "that are made here"
)


class Catalogue(Protocol):
    """Models that may be admitted by name: configured ones, folders, what upstreams list."""

    async def names(self) -> Sequence[str]:
        """Every name that `open` knows."""
        ...

    async def open(self, model_id: str) -> MemberParts:
        """The model's member with started engines; `UnknownNameError` or `EngineError`."""
        ...


class NoCatalogue:
    """Nothing can be admitted but members that stand by."""

    async def names(self) -> Sequence[str]:
        """None."""
        return ()

    async def open(self, model_id: str) -> MemberParts:
        """Raises `UnknownNameError`."""
        raise UnknownNameError(f"There is no model {model_id!r} in the catalogue, which is empty.")


class OptimizationControl:
    """`ports.Control` over a `ServerSideOptimizer`. Reports go under `report_dir` only."""

    def __init__(
        self,
        optimizer: ServerSideOptimizer,
        *,
        report_dir: Path | None = None,
        report_limits: ReportLimits | None = None,
        catalogue: Catalogue | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._reports = None if report_dir is None else ReportFolder(report_dir, report_limits)
        self._catalogue = catalogue or NoCatalogue()
        # Commands change several parts: one after the other.
        self._commands = asyncio.Lock()

    # --- reading ---

    async def read(self, view: View, **options: Any) -> JsonObject:
        """A view as JSON values. `REPORT` takes `export_file: bool`."""
        match view:
            case View.STATUS:
                return views.status(self._optimizer)
            case View.METRICS:
                return await self._metrics()
            case View.ENSEMBLE:
                return self._optimizer.ensemble_manager.get_ensemble_status()
            case View.REPORT:
                return await self._report(export_file=bool(options.get("export_file")))
            case View.DASHBOARD:
                return await self._dashboard()
            case View.LIVE:
                return live.frame(self._optimizer)
            case View.TIMELINE:
                return live.history(self._optimizer)
            case View.DIAGNOSIS:
                return {"text": situation.text(self._optimizer)}

    async def _metrics(self) -> JsonObject:
        worst = await self._optimizer.measure_now()
        return views.metrics_json(worst.metrics, worst.score.value)

    async def _dashboard(self) -> JsonObject:
        worst = await self._optimizer.measure_now()
        return views.dashboard(self._optimizer, worst.metrics, worst.score.value)

    async def _report(self, *, export_file: bool) -> JsonObject:
        made = reporting.report(self._optimizer)
        if not export_file:
            return made
        if self._reports is None:
            raise ConfigurationError(
                "export_file needs a report folder: set report_dir (LOADWISE_REPORT_DIR).", field="report_dir"
            )
        path = await asyncio.to_thread(self._reports.write, made)
        return {**made, "exported_to": str(path)}

    # --- commands ---

    async def apply(self, command: Command) -> JsonObject:
        """Raises `ConfigurationError`, `CapacityError` or `UnknownNameError`, and changes nothing then."""
        if isinstance(command, Feedback):
            # It waits for the disk, and for no other command.
            return await self._optimizer.chronicle.give(command)
        async with self._commands:
            match command:
                case Configure():
                    return await self._configure(command)
                case Start():
                    return await self._start()
                case Stop():
                    return await self._stop()
                case AddModel():
                    return await self._add_model(command)
                case Recompile():
                    return self._recompile(command)

    async def _configure(self, command: Configure) -> JsonObject:
        configurations = self._optimizer.configurations
        config = configurations.current.changed(command.changes)
        await self._require_member(command.changes.get("default_member"))
        difference = configurations.difference(config)
        if command.dry_run:
            return {
                "status": "dry_run", "version": configurations.version, "changes": difference,
                "config": config.model_dump(mode="json"),
            }  # fmt: skip
        version = await configurations.apply(config)
        return {
            "status": "configured", "version": version, "changes": difference,
            "config": config.model_dump(mode="json"),
        }  # fmt: skip

    async def _require_member(self, name: str | None) -> None:
        """Raises `ConfigurationError` for a default member that neither is here nor could be admitted."""
        if name is None:
            return
        known = {*self._optimizer.ensemble_manager.fleet, *await self._catalogue.names()}
        if name not in known:
            raise ConfigurationError(
                f"default_member {name!r} is no member. Known: {', '.join(sorted(known)) or 'none yet'}.",
                field="default_member",
            )

    async def _start(self) -> JsonObject:
        was = self._optimizer.director.running
        await self._optimizer.start_optimization()
        return {"status": "already_running" if was else "started", "running": True}

    async def _stop(self) -> JsonObject:
        was = self._optimizer.director.running
        await self._optimizer.stop_optimization()
        return {"status": "stopped" if was else "already_stopped", "running": False}

    async def _add_model(self, command: AddModel) -> JsonObject:
        ensemble, model_id = self._optimizer.ensemble_manager, command.model_id
        if not 0.0 < command.initial_weight < float("inf"):
            raise ConfigurationError(
                f"initial_weight must be above 0 and finite, not {command.initial_weight!r}.",
                field="initial_weight",
            )
        if ensemble.fleet.is_active(model_id):
            # Its weight is its own: who asks twice changes nothing.
            return self._added("already_active", model_id)
        if model_id not in ensemble.fleet:
            await self._admit_new(model_id)
        ensemble.fleet.admit(model_id)
        ensemble.fleet.update(model_id, weight=command.initial_weight)
        ensemble.know_members()
        log.info("member_added", member=model_id, weight=command.initial_weight)
        return self._added("added", model_id)

    def _added(self, status: str, model_id: str) -> JsonObject:
        ensemble = self._optimizer.ensemble_manager
        return {
            "status": status, "model_id": model_id, "weight": ensemble.fleet.parts(model_id).member.weight,
            "ensemble": ensemble.get_ensemble_status(),
        }  # fmt: skip

    async def _admit_new(self, model_id: str) -> None:
        known = await self._catalogue.names()
        fleet = self._optimizer.ensemble_manager.fleet
        if model_id not in known:
            choices = ", ".join([*known, *fleet.standby()]) or "none"
            raise UnknownNameError(f"There is no model {model_id!r:.200} in the catalogue. Known: {choices}.")
        # Before an engine is started for nothing.
        fleet.require_place()
        fleet.add(await self._catalogue.open(model_id))
        self._optimizer.ensemble_manager.know_members()

    def _recompile(self, command: Recompile) -> JsonObject:
        compiler, fleet = self._optimizer.model_compiler, self._optimizer.ensemble_manager.fleet
        model_id = command.model_id
        compiled = compiler.compilation_stats
        if model_id is not None and model_id not in compiled and model_id in fleet:
            return {"status": "nothing_to_compile", "models": [], "reasons": {model_id: COMPILES_ITSELF}}
        queued = compiler.force_recompile(model_id)
        stats = compiler.compilation_stats
        asked = list(stats) if model_id is None else [model_id]
        reasons = {name: _why_not(stats[name]) for name in asked if name not in queued}
        if model_id is None:
            reasons |= {name: COMPILES_ITSELF for name in fleet if name not in stats}
        status = "rebuilding" if queued else "nothing_to_compile"
        builds = [build for build in compiler.in_progress() if build["model"] in queued]
        return {
            "status": status,
            "models": queued,
            "builds": builds,
            "reasons": reasons,
            "compilation_stats": stats,
        }


def _why_not(stats: JsonObject) -> str:
    """Why a model is not rebuilt, with what to do about it."""
    said = [str(stats[name]).rstrip(".") + "." for name in ("cause", "remedy") if stats[name]]
    return " ".join(said)
