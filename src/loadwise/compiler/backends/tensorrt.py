"""TensorRT through torch-tensorrt: engines for the GPU at hand, in a program that is loaded, not traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from loadwise.compiler.backends.exported import ExportedBackend
from loadwise.ports import Availability, Form

PROGRAM = "program.ep"


class TensorRtBackend(ExportedBackend):
    """fp32 and fp16 builds; needs torch-tensorrt and an NVIDIA GPU."""

    name = "tensorrt"
    distributions = ("torch", "torch-tensorrt")
    forms = MappingProxyType({"tensorrt": Form(), "tensorrt-fp16": Form(precision="float16")})

    def available(self) -> Availability:
        """Whether torch-tensorrt is installed and torch sees a GPU."""
        installed = super().available()
        if not installed.ok:
            return installed
        import torch

        found = bool(torch.cuda.is_available())
        return Availability(ok=found, reason="" if found else "an NVIDIA GPU")

    def convert(self, program: Any, mode: str, options: Mapping[str, Any], package: Path) -> None:
        """TensorRT engines inside an exported program."""
        import torch
        import torch_tensorrt

        kinds = {torch.float16} if mode == "tensorrt-fp16" else {torch.float32}
        inputs = list(program.example_inputs[0])
        made = torch_tensorrt.dynamo.compile(program, inputs=inputs, enabled_precisions=kinds)
        torch_tensorrt.save(made, package / PROGRAM, inputs=inputs)

    def load(self, model: Any, package: Path, mode: str) -> Callable[..., Any]:
        """The engines, behind the module's own signature."""
        import torch_tensorrt

        call: Callable[..., Any] = torch_tensorrt.load(package / PROGRAM).module()
        return call
