"""The engine's own model and its adapters as members of one optimizer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from loadwise.app.inside.adapters import RuntimeAdapters
from loadwise.app.inside.control import require_possible
from loadwise.app.members import LOCAL_POOL
from loadwise.app.reports import report_dir, report_limits
from loadwise.decision.facts import EngineReading, Member, Replica
from loadwise.engines.inside.description import EngineDescription
from loadwise.engines.inside.engine import EngineInside
from loadwise.engines.inside.merging import Views
from loadwise.errors import ConfigurationError, UnknownNameError
from loadwise.optimizer.factory import Optimization, build
from loadwise.optimizer.fleet import MemberParts
from loadwise.ports import Clock
from loadwise.settings import EngineMemberSettings, Settings


class EngineMembers:
    """Which models of an engine are members; a catalogue of the adapters that may become one."""

    def __init__(
        self,
        settings: Settings,
        description: EngineDescription,
        views: Views,
        clock: Clock,
        adapters: RuntimeAdapters | None = None,
    ) -> None:
        # Another process would not know an adapter that only one was given.
        self._runtime = adapters if description.processes == 1 else None
        self._settings = settings
        self._description = description
        self._views = views
        self._clock = clock
        self._require_known()

    def opened(self) -> list[MemberParts]:
        """The model itself, then the adapters that the settings name."""
        named = [name for name in self._description.adapters if name in self._settings.engine_members]
        return [self._parts(name) for name in (self._description.model_id, *named)]

    async def names(self) -> Sequence[str]:
        """The adapters that the engine was given at its start, and those that it may be given now."""
        return [*self._description.adapters, *self._folders()]

    async def open(self, model_id: str) -> MemberParts:
        """An adapter as a member; `UnknownNameError` for what the engine does not have."""
        if model_id in self._description.adapters:
            return self._parts(model_id)
        if self._runtime is None or model_id not in self._folders():
            known = ", ".join(await self.names()) or "none"
            raise UnknownNameError(f"The engine has no adapter {model_id!r:.200}. Known: {known}.")
        await self._runtime.load(model_id)
        return self._parts(model_id)

    def _folders(self) -> Collection[str]:
        return () if self._runtime is None else self._runtime.folders()

    def _require_known(self) -> None:
        served = {self._description.model_id, *self._description.adapters}
        for name in self._settings.engine_members:
            if name not in served:
                raise ConfigurationError(
                    f"engine_members names {name!r}, which the engine does not serve. It serves: "
                    f"{', '.join(sorted(served))}.",
                    field="engine_members",
                )

    def _parts(self, name: str) -> MemberParts:
        description, replica_id = self._description, f"{name}-0"
        chosen = self._settings.engine_members.get(name, EngineMemberSettings())
        member = Member(
            member_id=name,
            replicas=(
                Replica(
                    replica_id=replica_id,
                    pool_id=LOCAL_POOL,
                    capacity_requests=description.capacity_requests,
                ),
            ),
            quality=chosen.quality,
            weight=chosen.weight,
            capabilities=self._engine(name, replica_id).capabilities,
        )
        return MemberParts(
            member=member,
            engines={replica_id: self._engine(name, replica_id)},
            standby=chosen.standby,
            engine_kind=description.engine,
            engine_reason="loadwise runs inside it",
        )

    def _engine(self, name: str, replica_id: str) -> EngineInside:
        def silent() -> EngineReading:
            return EngineReading(replica_id=replica_id, read_s=self._clock.monotonic_s())

        # One engine, one reading: said by its model, so that adapters do not count it again.
        whole = name == self._description.model_id
        return EngineInside(self._views.reading if whole else silent, self._description.context_tokens)


def optimization_inside(
    settings: Settings,
    description: EngineDescription,
    views: Views,
    clock: Clock,
    state_dir: Path,
    adapters: RuntimeAdapters | None = None,
) -> Optimization:
    """The optimizer of an engine's server, stopped; what was applied over HTTP is kept under `state_dir`."""
    require_possible(settings.optimization.rollout.model_dump(mode="json"))
    members = EngineMembers(settings, description, views, clock, adapters)
    return build(
        settings.optimization,
        members.opened(),
        catalogue=members,
        state_dir=state_dir,
        report_dir=report_dir(settings),
        report_limits=report_limits(settings),
        clock=clock,
    )
