"""One call that makes the server's optimizer, director and control of explicit parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from loadwise.compiler import ModelCompiler
from loadwise.optimizer.control import Catalogue, OptimizationControl
from loadwise.optimizer.director import EnsembleDirector
from loadwise.optimizer.fleet import Fleet, MemberParts
from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer
from loadwise.ports import AlertSink, Clock, HostSensor
from loadwise.settings import OptimizationConfig, RouteSettings
from loadwise.telemetry.prometheus import Telemetry
from loadwise.telemetry.report_folder import ReportLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimization:
    """What a server joins to its gateway."""

    optimizer: ServerSideOptimizer
    director: EnsembleDirector
    control: OptimizationControl
    telemetry: Telemetry


def build(
    config: OptimizationConfig,
    members: Sequence[MemberParts],
    *,
    routes: Mapping[str, RouteSettings] | None = None,
    catalogue: Catalogue | None = None,
    model_compiler: ModelCompiler | None = None,
    host: HostSensor | None = None,
    sinks: Sequence[AlertSink] | None = None,
    state_dir: Path | None = None,
    report_dir: Path | None = None,
    report_limits: ReportLimits | None = None,
    random: Random | None = None,
    clock: Clock | None = None,
) -> Optimization:
    """The optimizer over `members`, stopped; engines are started and closed by the caller.

    Use it as::

        made = build(
            settings.optimization,
            [MemberParts(member=member, engines={replica_id: engine})],
            routes=settings.routes,
            catalogue=catalogue,
            state_dir=settings.state_dir,
            report_dir=settings.report_dir,
        )
        gateway(director=made.director, control=made.control, telemetry=made.telemetry)
        if settings.bypass:
            made.optimizer.bypass()
        else:
            await made.optimizer.start_optimization()   # at start, when the engines run
        await made.optimizer.close()                    # at the end, before the engines close

    Routes name members of `members`; without a route `auto` in `routes`, `auto` has all of them.
    """
    fleet = Fleet(config, routes)
    for parts in members:
        fleet.add(parts)
    optimizer = ServerSideOptimizer(
        optimization_config=config,
        fleet=fleet,
        model_compiler=model_compiler,
        host=host,
        sinks=sinks,
        state_dir=state_dir,
        random=random,
        clock=clock,
    )
    return Optimization(
        optimizer=optimizer,
        director=optimizer.director,
        control=OptimizationControl(
            optimizer, report_dir=report_dir, report_limits=report_limits, catalogue=catalogue
        ),
        telemetry=optimizer.telemetry,
    )
