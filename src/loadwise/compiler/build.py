"""A build as the compiler keeps it: what it is, how far it has come, what became of it and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from loadwise.compiler.parameters import ParameterKey
from loadwise.compiler.timing import Timing
from loadwise.compiler.watched import Watch
from loadwise.ports import Built, JsonObject


class BuildState(StrEnum):
    """How far a build, or the model as a whole, has come."""

    ORIGINAL = "original"
    BUILDING = "building"
    PROMOTED = "promoted"
    # Quantised: a model of its own quality, which replaces nothing.
    VARIANT = "variant"
    FAILED = "failed"
    DECLINED = "declined"


class Stage(StrEnum):
    """What a build in progress is doing."""

    QUEUED = "queued"
    MAKING = "making"
    VERIFYING = "verifying"
    MEASURING = "measuring"
    ENDED = "ended"


@dataclass(slots=True, kw_only=True)
class Build:
    """One mode's build of one model; `built` and `key` are set when it has been promoted."""

    mode: str
    state: BuildState
    backend: str = ""
    build_id: str = ""
    # Asked for by an operator: it goes on when load returns.
    forced: bool = False
    stage: Stage = Stage.ENDED
    changed_s: float = 0.0
    failures: int = 0
    cause: str = ""
    remedy: str = ""
    # Places in the model's code where its graph broke; tracing ends at the first of them.
    graph_breaks: list[str] = field(default_factory=list)
    # Seconds of processor time that making it took so far.
    computed_s: float = 0.0
    build_time_s: float | None = None
    timing: Timing | None = None
    # Of a variant: how far its answers are from the original's, as a share of their size (root mean square).
    quality_loss: float | None = None
    # What the model's own judge found.
    judged: JsonObject | None = None
    # Opened from the store of an earlier process.
    kept: bool = False
    built: Built | None = None
    key: ParameterKey | None = None
    watch: Watch | None = None

    @property
    def step_s(self) -> float | None:
        """Seconds of one call as it was measured."""
        return None if self.timing is None else self.timing.compiled_s

    @property
    def cost_s(self) -> float | None:
        """Seconds of computing that making it took; None where it was not made to its end, or opened only."""
        if self.timing is None or self.kept:
            return None
        return self.computed_s or self.build_time_s

    @property
    def stale(self) -> bool:
        """Whether the model has changed since."""
        return self.key is not None and not self.key.holds()

    def stats(self) -> dict[str, Any]:
        """Plain values; times in ms are None before they were measured."""
        timing = self.timing
        return {
            "id": self.build_id or None,
            "backend": self.backend or None,
            "state": self.state.value,
            "stage": self.stage.value,
            "forced": self.forced,
            "cause": self.cause,
            "remedy": self.remedy,
            "graph_breaks": list(self.graph_breaks),
            "failures": self.failures,
            "build_time_s": self.build_time_s,
            "quality_loss": self.quality_loss,
            "agreement": self.judged,
            "kept": self.kept,
            "original_ms": None if timing is None else timing.original_s * 1000,
            "compiled_ms": None if timing is None else timing.compiled_s * 1000,
            "speedup": None if timing is None else timing.speedup,
            "speedup_interval": None if timing is None else timing.interval,
            "watched": None if self.watch is None else self.watch.stats(),
        }


def no_module(mode: str, now_s: float) -> Build:
    """What is told of a model that nothing can be built of."""
    return Build(
        mode=mode,
        state=BuildState.DECLINED,
        changed_s=now_s,
        cause="not a torch module",
        remedy="It is served as it is; give a torch.nn.Module to have it compiled.",
    )
