"""A director and a control in memory: what the gateway needs of an optimizer, without one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loadwise.clock import iso_utc
from loadwise.decision.facts import ANONYMOUS, Number, Outcome, Principal, RequestFacts, StrategyName
from loadwise.errors import CapacityError, RequestError, UnknownNameError
from loadwise.ports import (
    AddModel,
    Call,
    Clock,
    Command,
    Configure,
    Dispatch,
    Engine,
    JsonObject,
    ModelCard,
    PromptSize,
    Recompile,
    Start,
    Stop,
    View,
)
from loadwise.settings import OptimizationConfig


class FakeDirector:
    """Sends `auto` to its first engine and a name to the engine of that name, and keeps what it saw.

    `changes` are set on every dispatch; `refusal` is raised instead of dispatching. The newest `keep`
    requests, dispatches and outcomes are kept.
    """

    def __init__(self, engines: Mapping[str, Engine], clock: Clock, *, keep: int = 10_000) -> None:
        self.engines = dict(engines)
        self._clock = clock
        self.changes: Mapping[str, Number] = {}
        self.refusal: RequestError | None = None
        self.requests: deque[RequestFacts] = deque(maxlen=keep)
        self.dispatches: deque[Dispatch] = deque(maxlen=keep)
        self.outcomes: deque[Outcome] = deque(maxlen=keep)
        # (request id, model, status).
        self.refusals: deque[tuple[str, str, int]] = deque(maxlen=keep)
        self._open: dict[int, Dispatch] = {}

    @property
    def in_flight(self) -> int:
        """Dispatches that have not ended."""
        return len(self._open)

    def models(self, principal: Principal = ANONYMOUS) -> Sequence[ModelCard]:
        """`auto`, then each member; whoever asks may ask all."""
        route = [ModelCard(model_id="auto", kind="route", created_s=1)] if self.engines else []
        return [*route, *(ModelCard(model_id=name, kind="member", created_s=1) for name in self.engines)]

    async def measure(self, model: str, call: Call) -> PromptSize:
        """The body's bytes bound the prompt's tokens."""
        return PromptSize(exact=None, bound=len(call.body))

    def dispatch(self, request: RequestFacts, exclude: frozenset[str] = frozenset()) -> Dispatch:
        """The first engine that is asked for and not excluded; a member has one replica of its name."""
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal
        name = self._choose(request.model, exclude)
        dispatch = Dispatch(
            request=request,
            member_id=name,
            replica_id=name,
            engine=self.engines[name],
            strategy=StrategyName.BALANCED,
            reason="off" if request.off else "only_member",
            propensity=1.0,
            changes={} if request.off else self.changes,
            started_s=self._clock.monotonic_s(),
        )
        self.dispatches.append(dispatch)
        self._open[id(dispatch)] = dispatch
        return dispatch

    def _choose(self, model: str, exclude: frozenset[str]) -> str:
        if model != "auto" and model not in self.engines:
            raise RequestError(
                f"The model {model!r} does not exist.", status=404, param="model", code="model_not_found"
            )
        for name in self.engines:
            if name not in exclude and model in ("auto", name):
                return name
        raise RequestError("No engine can answer now.", status=503, kind="server_error", code="no_engine")

    def finish(self, dispatch: Dispatch, outcome: Outcome) -> None:
        """Keeps the outcome of a dispatch that has not ended yet."""
        if self._open.pop(id(dispatch), None) is not None:
            self.outcomes.append(outcome)

    def refused(self, request_id: str, model: str, status: int) -> None:
        """Keeps what failed before it was decided."""
        self.refusals.append((request_id, model, status))


class FakeControl:
    """Applies commands to a configuration in memory; its views have the documented keys and no figures."""

    def __init__(self, clock: Clock, catalogue: Sequence[str] = ("fast", "accurate", "spare")) -> None:
        self._clock = clock
        self._catalogue = frozenset(catalogue)
        self.config = OptimizationConfig()
        self.config_version = 1
        self.running = True
        self.members: dict[str, float] = {}
        self.commands: list[Command] = []
        # Values that the dashboard shows instead of its own.
        self.dashboard_extra: JsonObject = {}

    async def read(self, view: View, **options: Any) -> JsonObject:
        """A view whose measured values are all absent."""
        views: dict[View, Callable[[], JsonObject]] = {
            View.STATUS: self._status,
            View.METRICS: self._metrics,
            View.ENSEMBLE: self._ensemble,
            View.DASHBOARD: self._dashboard,
            View.DIAGNOSIS: lambda: {"text": "No request ended in the last hour.\n"},
            View.TIMELINE: lambda: {"time_s": self._clock.wall_s(), "tracks": {}},
            View.LIVE: lambda: {"time_s": self._clock.wall_s(), "running": self.running},
        }
        return (
            views[view]() if view in views else {"grade": None, "exported": bool(options.get("export_file"))}
        )

    async def apply(self, command: Command) -> JsonObject:
        """The command is applied whole or refused, and kept in `commands` when applied."""
        if isinstance(command, Configure):
            changed = self.config.changed(command.changes)
            if not command.dry_run:
                self.config = changed
                self.config_version += 1
        elif isinstance(command, AddModel):
            self._admit(command)
        elif isinstance(command, Recompile):
            if command.model_id is not None and command.model_id not in self._catalogue:
                raise UnknownNameError(f"There is no compiled model {command.model_id!r}.")
        elif isinstance(command, Start | Stop):
            self.running = isinstance(command, Start)
        self.commands.append(command)
        return {"config_version": self.config_version, "running": self.running}

    def _admit(self, command: AddModel) -> None:
        if command.model_id not in self._catalogue:
            raise UnknownNameError(f"The catalogue has no {command.model_id!r}.")
        size = self.config.max_ensemble_size
        if command.model_id not in self.members and len(self.members) >= size:
            raise CapacityError(f"The ensemble is full: max_ensemble_size is {size}.")
        self.members[command.model_id] = command.initial_weight

    def _status(self) -> JsonObject:
        config = self.config.model_dump(mode="json")
        return {"running": self.running, "config": config, "config_version": self.config_version}

    def _metrics(self) -> JsonObject:
        names = ["cpu_usage_percent", "memory_usage_percent", "gpu_utilization", "active_requests"]
        names += ["queue_depth", "throughput_tokens_per_sec", "avg_latency_ms", "error_rate"]
        return {**dict.fromkeys(names), "overall_load_score": None, "absent": names}

    def _ensemble(self) -> JsonObject:
        models = [{"model_id": name, "weight": weight} for name, weight in self.members.items()]
        return {
            "strategy": self.config.ensemble_strategy.value,
            "max_ensemble_size": self.config.max_ensemble_size,
            "models": models,
            "standby": sorted(self._catalogue - set(self.members)),
        }

    def _dashboard(self) -> JsonObject:
        return {
            "timestamp": iso_utc(self._clock.wall_s()),
            "system_status": "healthy" if self.running else "bypassed",
            "current_strategy": None,
            "load_score": None,
            "optimization_metrics": {
                "compilation_enabled": self.config.enable_torch_compile,
                "ensemble_models": len(self.members),
                "avg_optimization_time_ms": None,
                "performance_improvement": None,
            },
            "server_metrics": dict.fromkeys(
                ["cpu_usage", "memory_usage", "gpu_utilization", "throughput_rps"]
            ),
            "ensemble_status": {"active_models": sorted(self.members), "selection_distribution": {}},
            **self.dashboard_extra,
        }
