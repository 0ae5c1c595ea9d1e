"""The process that compiles: `python -m loadwise.compiler.backends.child FOLDER`.

Reads the exported program and the job from FOLDER, writes the package and a result there. A crash of the
compiled code happens here, not in the server.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from loadwise.compiler.backends.inductor import JOB, PACKAGE, PROGRAM, RESULT, load
from loadwise.compiler.verify import verify
from loadwise.errors import BuildError

_NICENESS = 10


def main(folder: Path) -> None:
    """FOLDER holds `result.json`, with the error or an empty string, and the package."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(_NICENESS)
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    try:
        make(folder, job)
    except BuildError as error:
        said = str(error)
    except Exception as error:  # noqa: BLE001 - the parent tells the user; the traceback is on stderr
        lines = str(error).strip().splitlines()
        said = f"The compiler failed: {type(error).__name__}: {lines[0][:300] if lines else ''}"
    else:
        said = ""
    (folder / RESULT).write_text(json.dumps({"error": said}), encoding="utf-8")


def make(folder: Path, job: dict[str, Any]) -> None:
    """The package is in `folder` and answers as the program does."""
    import torch

    torch.set_num_threads(job["threads"])
    program = torch.export.load(folder / PROGRAM)
    package = folder / PACKAGE
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(package), inductor_configs=job["options"]
        )
        original = program.module()
        verify(original, load(program, original, package), [program.example_inputs])


def _end_with_parent() -> None:
    # Not sys.stdin: its lock, held by this thread, would abort the interpreter at its end.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
