"""OpenVINO on the CPU: weights and graph in its own form, loaded without tracing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from loadwise.compiler.backends.arrays import ArrayCall, keep_answer_kind
from loadwise.compiler.backends.exported import ExportedBackend
from loadwise.ports import Availability, Form

MODEL = "model.xml"
_QUANTISED = MappingProxyType({"openvino-int8": "INT8_ASYM", "openvino-int4": "INT4_SYM"})
# What it computes in. On processors without half-precision arithmetic fp16 is how weights are kept.
_COMPUTES_IN = MappingProxyType({"openvino-bf16": "bf16"})


class OpenVinoBackend(ExportedBackend):
    """fp32, bf16 and fp16 builds; int8 and int4 weights as variants, which need nncf to be made."""

    name = "openvino"
    distributions = ("torch", "openvino")
    forms = MappingProxyType(
        {
            "openvino": Form(),
            "openvino-bf16": Form(precision="bfloat16"),
            "openvino-fp16": Form(precision="float16"),
            "openvino-int8": Form(precision="float16", quantised=True),
            "openvino-int4": Form(precision="float16", quantised=True),
        }
    )

    def available(self) -> Availability:
        """Whether OpenVINO is installed and finds the processor."""
        installed = super().available()
        if not installed.ok:
            return installed
        found = _finds_processor()
        return Availability(ok=found, reason="" if found else "OpenVINO's CPU plugin")

    def convert(self, program: Any, mode: str, options: Mapping[str, Any], package: Path) -> None:
        """Graph and weights in OpenVINO's form."""
        import openvino

        keep_answer_kind(program, package)
        model = openvino.convert_model(program)
        if mode in _QUANTISED:
            model = _with_small_weights(model, _QUANTISED[mode])
        openvino.save_model(model, package / MODEL, compress_to_fp16=mode == "openvino-fp16")

    def load(self, model: Any, package: Path, mode: str) -> Callable[..., Any]:
        """The model compiled for this processor, with one request per calling thread."""
        import openvino
        import torch

        hints = {
            "INFERENCE_PRECISION_HINT": _COMPUTES_IN.get(mode, "f32"),
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.Core().compile_model(package / MODEL, "CPU", hints)
        return ArrayCall(package, _Requests(compiled))


@cache
def _finds_processor() -> bool:
    """Kept: the loop asks at every look, and to look for devices takes OpenVINO milliseconds."""
    import openvino

    return "CPU" in openvino.Core().available_devices


def _with_small_weights(model: Any, kind: str) -> Any:
    import nncf

    if kind.startswith("INT8"):
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode[kind])
    # Layers that groups of 128 do not divide get smaller ones.
    adjust = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode[kind], advanced_parameters=adjust)


class _Requests:
    """Runs a compiled model from any thread."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._own = threading.local()

    def __call__(self, arrays: Sequence[Any]) -> Sequence[Any]:
        """The outputs, in order."""
        request = getattr(self._own, "request", None)
        if request is None:
            request = self._own.request = self._compiled.create_infer_request()
        # Copies: the request's own buffers are written again by the next call.
        return list(request.infer(dict(enumerate(arrays)), share_inputs=True, share_outputs=False).values())
