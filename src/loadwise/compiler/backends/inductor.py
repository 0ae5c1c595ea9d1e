"""torch's own compiler, ahead of time (AOTInductor): the package holds no weights but uses the module's."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from loadwise.compiler.backends.exported import ExportedBackend
from loadwise.ports import Availability, BuildRequest, Form

CODE, CONSTANTS = "code.pt2", "constants.safetensors"


class InductorBackend(ExportedBackend):
    """Builds with AOTInductor; needs a C++ compiler."""

    name = "inductor"
    forms = MappingProxyType({"default": Form(), "reduce-overhead": Form(), "max-autotune": Form()})

    def available(self) -> Availability:
        """Whether torch and a C++ compiler are here."""
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            return Availability(ok=False, reason=compiler)
        return super().available()

    def options(self, request: BuildRequest) -> Mapping[str, Any]:
        """Inductor's options for the mode."""
        return compile_options(request.mode)

    def convert(self, program: Any, mode: str, options: Mapping[str, Any], package: Path) -> None:
        """Code, and the constants that are not the module's."""
        import safetensors.torch
        import torch

        torch._inductor.aoti_compile_and_package(
            program, package_path=str(package / CODE), inductor_configs=dict(options)
        )
        held = {name: value.contiguous() for name, value in program.constants.items() if _is_tensor(value)}
        safetensors.torch.save_file(held, package / CONSTANTS)

    def load(self, model: Any, package: Path, mode: str) -> Callable[..., Any]:
        """The compiled code, running on the module's own tensors."""
        import safetensors.torch
        import torch

        runner = torch._inductor.aoti_load_package(str(package / CODE))
        own = {
            **safetensors.torch.load_file(package / CONSTANTS),
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        return _Package(runner, {name: own[name] for name in runner.get_constant_fqns()})


class _Package:
    """A loaded package with the tensors that it points to, which must live as long as it does."""

    def __init__(self, runner: Any, tensors: dict[str, Any]) -> None:
        runner.load_constants(tensors, check_full_update=True, user_managed=True)
        self._runner = runner
        self._tensors = tensors

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._runner(*args, **kwargs)


def compile_options(mode: str) -> dict[str, Any]:
    """Inductor's options for a mode, as `torch.compile(mode=...)` has them."""
    import torch

    options = {} if mode == "default" else dict(torch._inductor.list_mode_options(mode))
    # CUDA graphs belong to a process that traces; a package cannot carry them.
    options.pop("triton.cudagraphs", None)
    # The package uses the module's own tensors, so that a model is not held twice.
    return {
        **options,
        "aot_inductor.package_constants_in_so": False,
        # Templates for processors repack weights as constants of their own, which such a package lacks.
        "max_autotune_gemm_backends": "ATEN" if not torch.cuda.is_available() else "ATEN,TRITON",
        # Headers compiled beforehand pay from the second build in a folder on; each build has one of its own.
        "aot_inductor.precompile_headers": False,
        # The number of threads is compiled in; the child has another.
        "cpp.threads": torch.get_num_threads(),
    }


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "untyped_storage")
