"""What backends share that turn an exported graph into files: traced and converted in a child, opened here.

1. The child makes the module by its recipe and traces it. Without a recipe (a library user's module) this
   process traces, in a quiet moment, and hands the graph over.
2. The child converts the graph into a package, within limits of time and memory, and runs it once beside the
   graph: a build that crashes does so there.
3. The package is opened here, without tracing, on the module's own tensors where the backend can.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from loadwise.compiler.backends.accepts import Acceptance
from loadwise.compiler.backends.export import export
from loadwise.compiler.backends.watch import Limits, run_limited
from loadwise.compiler.parameters import digest_of
from loadwise.errors import BuildDeclinedError, BuildError
from loadwise.ports import Availability, BuildRequest, Built, Form

PROGRAM, JOB, RESULT, ACCEPTS = "program.pt2", "job.json", "result.json", "accepts.json"
PACKAGE = "package"
_TRY_ANOTHER = "The original serves. Try another compile_mode."


class ExportedBackend(ABC):
    """A backend names its forms and what it needs, and adds `convert` (in the child) and `load` (in both)."""

    name = ""
    forms: Mapping[str, Form] = MappingProxyType({})
    # Installed distributions on whose versions a package depends.
    distributions: tuple[str, ...] = ("torch",)

    def __init__(self, scratch: Path | None = None, threads: int = 1) -> None:
        # Files of a build in progress live in a private folder below it.
        self.scratch = scratch
        # Of the child: compiling beside a server takes one core.
        self.threads = threads

    def available(self) -> Availability:
        """Whether everything that it is made of is installed."""
        missing = [name for name in self.distributions if _version(name) is None]
        return Availability(ok=not missing, reason=", ".join(missing))

    def versions(self) -> Mapping[str, str]:
        """Of Python and of what the package was made with."""
        return {
            "python": sys.implementation.cache_tag,
            **{name: _version(name) or "" for name in self.distributions},
        }

    def options(self, request: BuildRequest) -> Mapping[str, Any]:
        """What `convert` wants to know of this process, in plain values."""
        return {}

    def prepare(self, module: Any, mode: str) -> None:  # noqa: B027 - most forms ask for none
        """Changes the copy of the module that is traced, where a form asks for it."""

    @abstractmethod
    def convert(self, program: Any, mode: str, options: Mapping[str, Any], package: Path) -> None:
        """In the child: `package`, an empty folder, holds the graph in this backend's form."""

    @abstractmethod
    def load(self, model: Any, package: Path, mode: str) -> Callable[..., Any]:
        """The package as a callable; `model` has the tensors that it was made for."""

    def build(self, request: BuildRequest) -> Built:
        """Made and opened, with nothing kept."""
        with private_folder(self.scratch) as folder:
            self.make(request, folder)
            return self.open(request, folder)

    def make(self, request: BuildRequest, folder: Path) -> None:
        """The package is in `folder`; `BuildDeclinedError` when the module cannot be exported."""
        with private_folder(self.scratch) as work:
            self._hand_over(request, work)
            limits = Limits(request.timeout_s, request.memory_bytes)
            command = [sys.executable, "-m", "loadwise.compiler.backends.child", str(work)]
            ended = run_limited(
                command, limits, request.stop, _environment(work), request.share, request.progress
            )
            self._judge(request, work / RESULT, *ended)
            for made in (work / PACKAGE).iterdir():
                made.rename(folder / made.name)

    def open(self, request: BuildRequest, folder: Path) -> Built:
        """The package in `folder`, running in this process."""
        accepts = Acceptance.from_json((folder / ACCEPTS).read_text(encoding="utf-8"))
        return Built(call=self.load(request.model, folder, request.mode), accepts=accepts.takes)

    def _hand_over(self, request: BuildRequest, work: Path) -> None:
        import torch

        job: dict[str, Any] = {
            "backend": self.name,
            "mode": request.mode,
            "threads": self.threads,
            "dynamic": request.dynamic,
            "options": dict(self.options(request)),
            "recipe": None if request.recipe is None else request.recipe.as_json(),
        }
        if request.recipe is None:
            program = export(request, partial(self.prepare, mode=request.mode))
            torch.export.save(program, work / PROGRAM)
        (work / JOB).write_text(json.dumps(job), encoding="utf-8")

    def _judge(self, request: BuildRequest, result: Path, status: int, errors: str) -> None:
        """Raises what the child has to say against its build."""
        if status != 0 or not result.is_file():
            raise BuildError(
                f"The build's process ended with status {status}{_said(status, errors)}",
                remedy="The original serves. force_recompile tries again.",
            )
        said = json.loads(result.read_text(encoding="utf-8"))
        if said["declined"]:
            raise BuildDeclinedError(said["declined"], remedy=said["remedy"], graph_break=said["graph_break"])
        if said["error"]:
            raise BuildError(said["error"], remedy=_TRY_ANOTHER)
        if request.recipe is not None and said["parameters"] != digest_of(request):
            raise BuildDeclinedError(
                "The model's folder holds other parameters than the model that serves.",
                remedy="Restart the server to serve the folder as it is now.",
            )


def make_private_folder(parent: Path | None) -> Path:
    """A new folder that only this user can enter: nobody else can put a library where it will be loaded."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Path(tempfile.mkdtemp(prefix="build-", dir=parent))


@contextmanager
def private_folder(parent: Path | None) -> Iterator[Path]:
    """A private folder for the time of a block."""
    folder = make_private_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path) -> dict[str, str]:
    """Every file that compiling writes stays in the build's folder; no warm worker processes."""
    return {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TMPDIR": str(folder),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }


@cache
def _version(distribution: str) -> str | None:
    """Kept: the loop asks at every look, and what is installed is read from a file."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _said(status: int, errors: str) -> str:
    """What is known of such an end; whoever is killed has nothing to say of it."""
    if status == -signal.SIGKILL:
        return " (SIGKILL): it was killed, by somebody or because the machine had no memory left"
    name = f" ({signal.Signals(-status).name})" if status < 0 else ""
    return f"{name}: {_last_line(errors)}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
