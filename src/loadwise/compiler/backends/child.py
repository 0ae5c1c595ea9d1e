"""The process that builds: `python -m loadwise.compiler.backends.child FOLDER`.

Reads the job from FOLDER, with the exported graph or the recipe of the module, and writes the package and a
result there. A crash of compiled code happens here, not in the server.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from loadwise.compiler.backends.accepts import Acceptance
from loadwise.compiler.backends.export import Prepare, traced
from loadwise.compiler.backends.exported import ACCEPTS, JOB, PACKAGE, PROGRAM, RESULT
from loadwise.compiler.examples import Arguments
from loadwise.compiler.parameters import parameters_digest
from loadwise.compiler.verify import verify
from loadwise.errors import BuildDeclinedError, BuildError

_NICENESS = 10
_PR_SET_PDEATHSIG = 1


def main(folder: Path) -> None:
    """FOLDER holds the package, and a result that says what went wrong or that nothing did."""
    _be_killed_with_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(_NICENESS)
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    said = {"error": "", "declined": "", "remedy": "", "graph_break": "", "parameters": ""}
    try:
        said["parameters"] = make(folder, job)
    except BuildDeclinedError as error:
        said |= {"declined": str(error), "remedy": error.remedy, "graph_break": error.graph_break}
    except BuildError as error:
        said["error"] = str(error)
    except Exception as error:  # noqa: BLE001 - the parent tells the user; the traceback is on stderr
        lines = str(error).strip().splitlines()
        said["error"] = f"The compiler failed: {type(error).__name__}: {lines[0][:300] if lines else ''}"
    (folder / RESULT).write_text(json.dumps(said), encoding="utf-8")


def make(folder: Path, job: dict[str, Any]) -> str:
    """The package is in `folder` and answers as the module does; returns the digest of its parameters."""
    import torch

    from loadwise.compiler.backends import BACKENDS

    torch.set_num_threads(job["threads"])
    backend, mode, package = BACKENDS[job["backend"]](), job["mode"], folder / PACKAGE
    program, digest = _program(folder, job, partial(backend.prepare, mode=mode))
    package.mkdir(mode=0o700)
    accepts = Acceptance.of(program, program.example_inputs)
    (package / ACCEPTS).write_text(accepts.as_json(), encoding="utf-8")
    with torch.no_grad():
        backend.convert(program, mode, job["options"], package)
        original = program.module()
        form = backend.forms[mode]
        verify(original, backend.load(original, package, mode), [program.example_inputs], form=form)
    return digest


def _program(folder: Path, job: dict[str, Any], prepare: Prepare) -> tuple[Any, str]:
    """The graph, and the digest of the parameters of the module that it was traced from here."""
    import torch

    if job["recipe"] is None:
        return torch.export.load(folder / PROGRAM), ""
    from loadwise.torch_engine.recipe import StepRecipe

    made = StepRecipe(**job["recipe"]).make()
    example: Arguments = (made.examples[0], {})
    program = traced(made.module, example, made.dynamic_shapes, job["dynamic"], prepare)
    return program, parameters_digest(made.module)


def _be_killed_with_parent() -> None:
    """On Linux: a process that is stopped when its parent dies cannot see its input end."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_parent() -> None:
    # Not sys.stdin: its lock, held by this thread, would abort the interpreter at its end.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
