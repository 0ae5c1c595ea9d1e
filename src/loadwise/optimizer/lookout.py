"""Looks out after each turn: samples its load, and notes what is other than before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from loadwise.decision.facts import StrategyName
from loadwise.optimizer.changes import START, STOP, Change, ChangeKind, Changes, configure
from loadwise.settings import OptimizationConfig

if TYPE_CHECKING:
    from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer

Value = TypeVar("Value")


class Lookout:
    """Keeps `changes`. `look` may be called at any time and as often as one likes."""

    def __init__(self, optimizer: ServerSideOptimizer) -> None:
        self._optimizer = optimizer
        self.changes = Changes()
        self._seen: dict[str, Any] = {"running": True}
        self._config = optimizer.config
        optimizer.configurations.on_applied(self._applied)

    def sample(self) -> None:
        """The load as it was decided on is in the timeline, and what changed is noted."""
        optimizer = self._optimizer
        decision = optimizer.cycle.decision
        waiting = [r.waiting_requests for r in optimizer.readings.latest() if r.waiting_requests is not None]
        optimizer.recorder.timeline.sampled(
            optimizer.clock.monotonic_s(),
            load=None if decision is None else decision.worst.score.value,
            strategy=None if decision is None else decision.worst.strategy.name.value,
            waiting=float(sum(waiting)) if waiting else None,
        )
        self.look()

    def look(self) -> None:
        """What differs from the last look is noted as changed."""
        optimizer = self._optimizer
        # Before the first whole turn optimisation is about to run: that is no change.
        if optimizer.cycle.turns:
            self._differs("running", optimizer.director.running, self._switched)
        decision = optimizer.cycle.decision
        for pool, found in {} if decision is None else decision.pools.items():
            self._differs(f"pool {pool}", found.strategy.name, self._strategy(pool, found.strategy))
        for name in optimizer.ensemble_manager.fleet.active():
            health = optimizer.ensemble_manager.beliefs[name].health.value
            self._differs(f"member {name}", health, self._health(name))
        for model_id, stats in optimizer.model_compiler.compilation_stats.items():
            for mode, build in stats["builds"].items():
                self._differs(f"build {model_id} {mode}", build["state"], self._built(model_id, mode, build))

    def _differs(self, what: str, value: Value, note: Callable[[Value | None, Value], None]) -> None:
        before = self._seen.get(what)
        if before != value:
            self._seen[what] = value
            note(before, value)

    def _note(self, kind: ChangeKind, what: str, reason: str, undo: str | None) -> None:
        at_s = self._optimizer.clock.wall_s()
        self.changes.add(Change(at_s=at_s, kind=kind, what=what, reason=reason, undo=undo))

    def _switched(self, _: bool | None, running: bool) -> None:
        what, undo = ("optimisation started", STOP) if running else ("optimisation stopped", START)
        self._note(ChangeKind.SWITCH, what, "operator", undo)

    def _strategy(self, pool: str, chosen: Any) -> Callable[[StrategyName | None, StrategyName], None]:
        def note(before: StrategyName | None, after: StrategyName) -> None:
            if before is None:
                return
            load = "unknown" if chosen.load_score is None else f"{chosen.load_score:.2f}"
            what = f"strategy {before.value} → {after.value} on pool {pool}, at load {load}"
            self._note(ChangeKind.STRATEGY, what, chosen.reason.value, STOP)

        return note

    def _health(self, name: str) -> Callable[[str | None, str], None]:
        def note(before: str | None, after: str) -> None:
            if before is None and after == "healthy":
                return
            self._note(ChangeKind.MEMBER, f"member {name} is {after}", self._why(name, after), None)

        return note

    def _why(self, name: str, health: str) -> str:
        error_rate = self._optimizer.ensemble_manager.beliefs[name].error_rate
        return "its probes passed" if health == "healthy" else f"recent error rate {error_rate:.0%}"

    def _built(self, model_id: str, mode: str, build: Mapping[str, Any]) -> Callable[[str | None, str], None]:
        def note(_: str | None, state: str) -> None:
            if state not in ("promoted", "failed"):
                return
            cause = str(build.get("cause") or "faster than the original, and its outputs agree")
            undo = configure({"enable_torch_compile": False}) if state == "promoted" else None
            self._note(ChangeKind.BUILD, f"build {mode} of {model_id} {state}", cause, undo)

        return note

    def _applied(self, config: OptimizationConfig, version: int) -> None:
        before, after = self._config.model_dump(mode="json"), config.model_dump(mode="json")
        self._config = config
        changed = {name: before[name] for name in after if before[name] != after[name]}
        if not changed:
            return
        said = ", ".join(f"{name} {before[name]} → {after[name]}" for name in changed)
        put_back = self._optimizer.configurations.put_back
        reason = "the one before met fewer objectives" if put_back else "operator"
        self._note(ChangeKind.CONFIGURATION, f"configuration {version}: {said}", reason, configure(changed))
