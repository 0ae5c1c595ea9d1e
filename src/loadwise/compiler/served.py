"""`ServedModel`: what callers hold. It answers with the original until a build has been promoted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from loadwise.compiler.examples import Examples
from loadwise.compiler.parameters import ParameterKey
from loadwise.compiler.verify import Timing
from loadwise.ports import Built


class BuildState(StrEnum):
    """How far a build, or the model as a whole, has come."""

    ORIGINAL = "original"
    BUILDING = "building"
    PROMOTED = "promoted"
    FAILED = "failed"
    DECLINED = "declined"


@dataclass(slots=True, kw_only=True)
class Build:
    """One mode's build of one model; `built` and `key` are set when it has been promoted."""

    mode: str
    state: BuildState
    changed_s: float = 0.0
    failures: int = 0
    cause: str = ""
    remedy: str = ""
    build_time_s: float | None = None
    timing: Timing | None = None
    built: Built | None = None
    key: ParameterKey | None = None

    @property
    def stale(self) -> bool:
        """Whether the model has changed since."""
        return self.key is not None and not self.key.holds()

    def stats(self) -> dict[str, Any]:
        """Plain values; times in ms are None before they were measured."""
        timing = self.timing
        return {
            "state": self.state.value,
            "cause": self.cause,
            "remedy": self.remedy,
            "failures": self.failures,
            "build_time_s": self.build_time_s,
            "original_ms": None if timing is None else timing.original_s * 1000,
            "compiled_ms": None if timing is None else timing.compiled_s * 1000,
            "speedup": None if timing is None else timing.speedup,
        }


class ServedModel:
    """Answers as the model it was made from does; everything but calls goes to that model.

    The promoted build serves calls it was made for, while parameters are those it was made with and the
    model is in evaluation mode; its answers carry no gradients. All else is the original's.
    """

    def __init__(
        self, model: Any, model_id: str, examples: Examples, on_first_call: Callable[[ServedModel], None]
    ) -> None:
        self.original = model
        self.model_id = model_id
        self.examples = examples
        self.dynamic_shapes: Any = None
        self.builds: dict[str, Build] = {}
        # Modes whose build waits or runs.
        self.queued: set[str] = set()
        self.cause = ""
        self.remedy = ""
        # Replaced as a whole, so that a call sees either the old build or the new one.
        self.active: Build | None = None
        self._on_first_call = on_first_call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's answer; whatever the model raises is raised."""
        build = self.active
        # Another thread may retire the build at any moment: what it is made of is read once.
        built = None if build is None else build.built
        if build is not None and built is not None and self._fits(build, built, args, kwargs):
            try:
                return built.call(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever a build raises, the original can answer
                first_line = str(error).split("\n")[0]
                self.retire(build, BuildState.FAILED, f"{type(error).__name__} while serving: {first_line}")
        if self.examples.learn(args, kwargs):
            self._on_first_call(self)
        return self.original(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Only reached for what this object does not have itself.
        if "original" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.original, name)

    def _fits(self, build: Build, built: Built, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        key = build.key
        if key is None:
            return False
        if not key.holds():
            # Training comes and goes; other changes are for good, and the build with them.
            if not key.training:
                self.retire(build, BuildState.ORIGINAL, "The model's parameters changed after the build.")
            return False
        return built.accepts(args, kwargs) and not _needs_original(args, kwargs)

    def retire(self, build: Build, state: BuildState, cause: str) -> None:
        """The build no longer serves, for the reason given."""
        build.state, build.cause = state, cause
        build.remedy = f"force_recompile({self.model_id!r}) builds it anew."
        build.built = build.key = None
        if self.active is build:
            self.active = None


def _needs_original(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether gradients for an input, or mixed precision, are asked of this call."""
    torch = sys.modules["torch"]
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return True
    if not torch.is_grad_enabled():
        return False
    return any(getattr(value, "requires_grad", False) for value in (*args, *kwargs.values()))
