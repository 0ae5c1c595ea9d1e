"""Why a model is not even tried to be built now: cause and remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from loadwise.compiler.parameters import in_training
from loadwise.compiler.served import ServedModel
from loadwise.compiler.workshop import Workshop
from loadwise.settings import OptimizationConfig

SERVING_GPU = (
    "the model is on a GPU that serves, which a build would take from requests",
    "Build beforehand with 'loadwise compile'; the server opens what is kept. Or drain every member on that "
    "GPU (those that stand by are, once their answers have ended), then force_recompile.",
)


def obstacle(
    served: ServedModel,
    config: OptimizationConfig,
    workshop: Workshop,
    *,
    closed: bool,
    serving_gpus: frozenset[str],
) -> tuple[str, str] | None:
    """What stands in the way, with what to do about it; None when a build can be tried."""
    if not config.enable_torch_compile:
        return "switched off", "Set enable_torch_compile to true."
    if closed:
        return "the compiler was closed", "Make a new ModelCompiler."
    if in_training(served.original):
        return "the model is in training mode", "Call model.eval(), then force_recompile."
    if gpus(served) & serving_gpus:
        return SERVING_GPU
    if not served.examples.known:
        return (
            "no call seen yet whose arguments can be copied, so no shapes to build for",
            "Call the model once with tensors and plain values, or pass examples.",
        )
    availability = workshop.available()
    if not availability.ok:
        return f"unavailable: {availability.reason}", f"Install {availability.reason}; see 'make doctor'."
    return None


def gpus(served: ServedModel) -> frozenset[str]:
    """The GPUs that the model's parameters are on."""
    devices = {parameter.device for parameter in served.original.parameters()}
    return frozenset(str(device) for device in devices if device.type == "cuda")


def serving_gpus(models: Iterable[ServedModel], drained: Callable[[str], bool]) -> frozenset[str]:
    """The GPUs from which a model answers requests: all that any has which is not drained."""
    return frozenset().union(*(gpus(model) for model in models if not drained(model.model_id)))
