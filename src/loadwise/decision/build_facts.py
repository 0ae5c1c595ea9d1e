"""What the planner is told: builds as they are, modes that can be built, how much models are used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

# Before it was measured: the share of a step's time that a mode saves, and seconds of computing to make it.
EXPECTED: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "default": (0.25, 60.0),
        "reduce-overhead": (0.25, 60.0),
        "max-autotune": (0.30, 600.0),
        "openvino": (0.40, 30.0),
        "openvino-bf16": (0.50, 30.0),
        "openvino-fp16": (0.45, 30.0),
        "onnxruntime": (0.30, 40.0),
        "tensorrt": (0.50, 300.0),
    }
)
UNKNOWN_GAIN: Final = (0.20, 120.0)


class BuildStatus(StrEnum):
    """How far a build has come."""

    READY = "ready"
    BUILDING = "building"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFact:
    """One build as the compiler knows it; `stale` once the model has changed."""

    model_id: str
    mode: str
    status: BuildStatus
    changed_s: float = 0.0
    failures: int = 0
    stale: bool = False
    # Asked for by an operator: load does not end it.
    forced: bool = False
    # Why it cannot even be tried now, in words.
    obstacle: str = ""
    # As measured, None before: seconds of one call, the share of the original's time that is saved, and what
    # it took to make.
    step_s: float | None = None
    gain: float | None = None
    cost_s: float | None = None

    @property
    def serves(self) -> bool:
        """Whether it can answer calls."""
        return self.status is BuildStatus.READY and not self.stale


@dataclass(frozen=True, slots=True)
class BuildOption:
    """A mode that can be built here: the share of a step's time that it saves, and seconds to make it."""

    mode: str
    gain: float
    cost_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUse:
    """How much a model is used: seconds of steps per second, and seconds until its next likely change."""

    busy_fraction: float
    steady_s: float
