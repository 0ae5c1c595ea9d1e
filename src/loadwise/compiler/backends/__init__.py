"""One file per build backend, and the catalogue of them by name."""

from __future__ import annotations

from collections.abc import Mapping

from loadwise.compiler.backends.exported import ExportedBackend
from loadwise.compiler.backends.inductor import InductorBackend
from loadwise.compiler.backends.onnxruntime import OnnxRuntimeBackend
from loadwise.compiler.backends.openvino import OpenVinoBackend
from loadwise.compiler.backends.tensorrt import TensorRtBackend
from loadwise.compiler.backends.torchao import TorchAoBackend
from loadwise.ports import BuildBackend

BACKENDS: Mapping[str, type[ExportedBackend]] = {
    backend.name: backend
    for backend in (InductorBackend, OpenVinoBackend, OnnxRuntimeBackend, TensorRtBackend, TorchAoBackend)
}


def default_backend() -> BuildBackend:
    """The backend that builds when none was chosen: torch's own compiler."""
    return BACKENDS["inductor"]()
