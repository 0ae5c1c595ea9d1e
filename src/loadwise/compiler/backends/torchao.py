"""torchao's weight-only quantisation, compiled by torch: variants with a quality of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from loadwise.compiler.backends.inductor import CODE, InductorBackend, compile_options
from loadwise.ports import BuildRequest, Form
from loadwise.torch_engine.weights import keep_small


class TorchAoBackend(InductorBackend):
    """int8 weights of every linear layer; the package holds its own weights."""

    name = "torchao"
    distributions = ("torch", "torchao")
    forms = MappingProxyType({"torchao-int8": Form(quantised=True)})

    def options(self, request: BuildRequest) -> Mapping[str, Any]:
        """As by default, but with the quantised weights inside: the module has none."""
        return {**compile_options("default"), "aot_inductor.package_constants_in_so": True}

    def prepare(self, module: Any, mode: str) -> None:
        """The linear layers of `module`, a copy of the original's structure, have int8 weights."""
        keep_small(module, "int8")

    def load(self, model: Any, package: Path, mode: str) -> Callable[..., Any]:
        """The compiled code with its weights."""
        import torch

        runner: Callable[..., Any] = torch._inductor.aoti_load_package(str(package / CODE))
        return runner
