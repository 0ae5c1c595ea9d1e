"""torch's compiler, in a child process: exported here, compiled there, loaded back without tracing.

1. The module is exported to a graph on the build thread. Tracing holds the interpreter's lock in slices, so
   this is for quiet moments; it works on a shell of the module that shares its tensors, so that callers of
   the original notice nothing else.
2. A child process compiles the graph into a package (AOTInductor), within limits of time and memory, and runs
   it once beside the graph: a build that crashes does so there.
3. The package is loaded here. It holds no weights: it uses the module's own tensors.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadwise.compiler.backends.accepts import Acceptance
from loadwise.compiler.backends.watch import Limits, run_limited
from loadwise.errors import BuildDeclinedError, BuildError
from loadwise.ports import Availability, BuildRequest, Built

PROGRAM, PACKAGE, JOB, RESULT = "program.pt2", "package.pt2", "job.json", "result.json"


class InductorBackend:
    """Builds with AOTInductor; files live in a private folder under `cache` for the time of a build."""

    name = "inductor"

    def __init__(self, cache: Path | None = None, threads: int = 1) -> None:
        self.cache = cache
        # Of the child: compiling beside a server takes one core.
        self.threads = threads

    def available(self) -> Availability:
        """Whether torch and a C++ compiler are here."""
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            return Availability(ok=False, reason=compiler)
        return Availability(ok=True)

    def build(self, request: BuildRequest) -> Built:
        """The module compiled for its examples; `BuildDeclinedError` when it cannot be exported."""
        program = export(request)
        if self.cache is not None:
            self.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        # mkdtemp folders are 0700: nobody else can put a library where this process will load one.
        with tempfile.TemporaryDirectory(prefix="build-", dir=self.cache) as folder:
            self._compile(program, request, Path(folder))
            call = load(program, request.model, Path(folder) / PACKAGE)
        return Built(call=call, accepts=Acceptance.of(program, request.examples[0]).takes)

    def _compile(self, program: Any, request: BuildRequest, folder: Path) -> None:
        import torch

        torch.export.save(program, folder / PROGRAM)
        options = compile_options(request.mode)
        (folder / JOB).write_text(json.dumps({"options": options, "threads": self.threads}), encoding="utf-8")
        command = [sys.executable, "-m", "loadwise.compiler.backends.child", str(folder)]
        limits = Limits(request.timeout_s, request.memory_bytes)
        status, errors = run_limited(command, limits, request.stop, _environment(folder))
        result = folder / RESULT
        if status != 0 or not result.is_file():
            raise BuildError(
                f"The build's process ended with status {status}: {_last_line(errors)}",
                remedy="The original serves. force_recompile tries again.",
            )
        said = json.loads(result.read_text(encoding="utf-8"))
        if said["error"]:
            raise BuildError(said["error"], remedy="The original serves. Try another compile_mode.")


def export(request: BuildRequest) -> Any:
    """The module's graph; `BuildDeclinedError` says why it has none that could replace the module."""
    import torch

    args, kwargs = request.examples[0]
    shapes = request.dynamic_shapes
    if shapes is None and request.dynamic:
        shapes = _automatic_shapes(request.model, args, kwargs)
    try:
        with torch.no_grad():
            program = torch.export.export(shell_of(request.model), args, dict(kwargs), dynamic_shapes=shapes)
    except Exception as error:
        raise BuildDeclinedError(
            f"The model cannot be exported: {_first_line(error)}",
            remedy="torch.export needs a forward without data-dependent Python; the original serves.",
        ) from error
    _refuse_side_effects(program)
    return program


def shell_of(model: Any) -> Any:
    """A copy of the module's structure over the same tensors: exporting swaps them for a moment."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    try:
        return copy.deepcopy(model, shared)
    except Exception as error:
        raise BuildDeclinedError(
            f"The model's structure cannot be copied: {_first_line(error)}",
            remedy="Keep locks, files and connections out of the module; the original serves.",
        ) from error


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
        # The number of threads is compiled in; the child has another.
        "cpp.threads": torch.get_num_threads(),
    }


def load(program: Any, model: Any, package: Path) -> Any:
    """The compiled package, running on the module's own tensors."""
    import torch

    runner = torch._inductor.aoti_load_package(str(package))
    own = {
        **program.constants,
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


def _refuse_side_effects(program: Any) -> None:
    import torch

    # Decomposed, in-place changes show in the signature, and a dropout that does nothing is gone.
    functional = program.run_decompositions()
    changed = sorted(functional.graph_signature.buffers_to_mutate.values())
    if changed:
        raise BuildDeclinedError(
            f"A call changes the model's buffers ({', '.join(changed[:3])}).",
            remedy="A build could not be verified beside the original; the original serves.",
        )
    for node in functional.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise BuildDeclinedError(
                f"A call uses chance ({node.target}).",
                remedy="A build could not be verified beside the original; the original serves.",
            )


def _automatic_shapes(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Every size of every tensor may vary where the graph allows it; by the forward's parameter names."""
    import torch

    def automatic(leaf: Any) -> Any:
        return [torch.export.Dim.AUTO] * leaf.dim() if isinstance(leaf, torch.Tensor) else None

    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return torch.utils._pytree.tree_map(automatic, dict(bound))


def _environment(folder: Path) -> dict[str, str]:
    """Every file that compiling writes stays in the build's folder; no warm worker processes."""
    return {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TMPDIR": str(folder),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
