"""ONNX Runtime: an ONNX graph with its weights, on the processor or, where it is built for it, on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from loadwise.compiler.backends.arrays import ArrayCall, keep_answer_kind
from loadwise.compiler.backends.exported import ExportedBackend
from loadwise.ports import Form

MODEL = "model.onnx"


class OnnxRuntimeBackend(ExportedBackend):
    """One fp32 build; onnx and onnxscript make it."""

    name = "onnxruntime"
    distributions = ("torch", "onnxruntime", "onnx", "onnxscript")
    forms = MappingProxyType({"onnxruntime": Form()})

    def convert(self, program: Any, mode: str, options: Mapping[str, Any], package: Path) -> None:
        """The graph in ONNX, weights beside it."""
        import torch

        keep_answer_kind(program, package)
        torch.onnx.export(program, dynamo=True, verbose=False).save(package / MODEL)

    def load(self, model: Any, package: Path, mode: str) -> Callable[..., Any]:
        """A session of the providers that suit where the model is."""
        import onnxruntime
        import torch

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(package / MODEL, settings, providers=providers(model))
        names = [node.name for node in session.get_inputs()]
        return ArrayCall(package, lambda arrays: session.run(None, dict(zip(names, arrays, strict=True))))


def providers(model: Any) -> list[str]:
    """CUDA's for a model on a GPU where this ONNX Runtime has it, then the processor's."""
    import onnxruntime

    able = onnxruntime.get_available_providers()
    on_gpu = any(parameter.device.type == "cuda" for parameter in model.parameters())
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider") if on_gpu else ("CPUExecutionProvider",)
    return [name for name in wanted if name in able]
