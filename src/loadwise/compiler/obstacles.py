"""Why a model is not even tried to be built now: cause and remedy."""

from __future__ import annotations

from typing import Any

from loadwise.compiler.parameters import in_training
from loadwise.compiler.served import ServedModel
from loadwise.compiler.workshop import Workshop
from loadwise.settings import OptimizationConfig


def obstacle(
    served: ServedModel, config: OptimizationConfig, workshop: Workshop, *, closed: bool
) -> tuple[str, str] | None:
    """What stands in the way, with what to do about it; None when a build can be tried."""
    if not config.enable_torch_compile:
        return "switched off", "Set enable_torch_compile to true."
    if closed:
        return "the compiler was closed", "Make a new ModelCompiler."
    if in_training(served.original):
        return "the model is in training mode", "Call model.eval(), then force_recompile."
    if _on_gpu(served.original):
        return (
            "the model serves from a GPU, which a build would take from it",
            "Build beforehand with 'loadwise compile'; the server opens what is kept.",
        )
    if not served.examples.known:
        return (
            "no call seen yet whose arguments can be copied, so no shapes to build for",
            "Call the model once with tensors and plain values, or pass examples.",
        )
    availability = workshop.available()
    if not availability.ok:
        return f"unavailable: {availability.reason}", f"Install {availability.reason}; see 'make doctor'."
    return None


def _on_gpu(model: Any) -> bool:
    return any(parameter.device.type == "cuda" for parameter in model.parameters())
