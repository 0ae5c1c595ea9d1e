"""A module's graph, by `torch.export`; a module that a build could not replace is declined.

Tracing holds the interpreter's lock in slices, so it is for a child process or, where nobody else can make
the module, for quiet moments. It works on a shell of the module that shares its tensors: callers of the
original notice nothing.
"""

from __future__ import annotations

import copy
import inspect
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loadwise.errors import BuildDeclinedError
from loadwise.ports import BuildRequest

Prepare = Callable[[Any], None]


def export(request: BuildRequest, prepare: Prepare = lambda module: None) -> Any:
    """The module's graph; `BuildDeclinedError` says why it has none that could replace the module."""
    return traced(request.model, request.examples[0], request.dynamic_shapes, request.dynamic, prepare)


def traced(
    model: Any,
    example: Any,
    dynamic_shapes: Any,
    dynamic: bool,
    prepare: Prepare = lambda module: None,
) -> Any:
    """The graph of `model` for one call, with the sizes that may vary; `prepare` changes the copy."""
    import torch

    args, kwargs = example
    shapes = dynamic_shapes
    if shapes is None and dynamic:
        shapes = _automatic_shapes(model, args, kwargs)
    try:
        with torch.no_grad():
            shell = shell_of(model)
            prepare(shell)
            program = torch.export.export(shell, args, dict(kwargs), dynamic_shapes=shapes)
    except BuildDeclinedError:
        raise
    except Exception as error:
        raise BuildDeclinedError(
            f"The model cannot be exported: {_first_line(error)}",
            remedy="torch.export needs a forward without data-dependent Python; the original serves.",
            graph_break=_place(error),
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


def _place(error: BaseException) -> str:
    """Where in the model's own code it happened; the error's kind where no such place is known."""
    chain = [error, error.__cause__, error.__context__]
    frames = [frame for one in chain if one is not None for frame in traceback.extract_tb(one.__traceback__)]
    own = [frame for frame in frames if f"{os.sep}torch{os.sep}" not in frame.filename]
    inner = [frame for frame in own if frame.filename != __file__]
    if not inner:
        return type(error).__name__
    last = inner[-1]
    return f"{last.name} ({Path(last.filename).name}:{last.lineno}): {last.line}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
