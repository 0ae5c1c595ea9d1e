"""How another process makes the decode step that serves here: from the same folder, with the same sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Made:
    """A module, the calls to build it for, and which of their sizes vary (torch.export's notation)."""

    module: Any
    examples: list[tuple[Any, ...]]
    dynamic_shapes: Any


@dataclass(frozen=True, slots=True)
class StepRecipe:
    """The step of the model in `folder` over a cache of `places` rows; `dtype` as torch names it."""

    folder: str
    device: str
    dtype: str
    places: int
    context_tokens: int
    # Of linear layers, where they are kept small; None: as in the folder.
    weights: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    def make(self) -> Made:
        """The step and its typical decodes; `ConfigurationError` when the folder cannot be loaded."""
        from loadwise.torch_engine.loading import load
        from loadwise.torch_engine.runner import Runner

        loaded = load(Path(self.folder), device=self.device, dtype=self.dtype, weights=self.weights)
        runner = Runner(loaded, self.places, self.context_tokens)
        return Made(runner.original, runner.decode_examples(), runner.decode_dynamic_shapes())
