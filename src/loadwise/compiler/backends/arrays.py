"""Calls of runtimes that take and give arrays: torch's arguments in, the module's kind of answer out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadwise.errors import BuildDeclinedError

ANSWER = "answer.json"
Run = Callable[[Sequence[Any]], Sequence[Any]]


def keep_answer_kind(program: Any, package: Path) -> None:
    """`package` tells how the outputs make an answer; `BuildDeclinedError` where they are not all of it."""
    import torch

    signature = program.graph_signature
    changed = sorted(signature.user_inputs_to_mutate.values())
    if changed or _functional_changes(program):
        raise BuildDeclinedError(
            "A call writes into its arguments, which this runtime only reads.",
            remedy="The inductor backend takes such a model.",
        )
    if len(signature.user_outputs) != program.call_spec.out_spec.num_leaves or None in signature.user_outputs:
        raise BuildDeclinedError(
            "The answer holds something that is not a tensor.",
            remedy="The inductor backend takes such a model.",
        )
    text = torch.utils._pytree.treespec_dumps(program.call_spec.out_spec)
    (package / ANSWER).write_text(text, encoding="utf-8")


def _functional_changes(program: Any) -> bool:
    """In-place changes of arguments show in the signature only after decomposition."""
    return bool(program.run_decompositions({}).graph_signature.user_inputs_to_mutate)


class ArrayCall:
    """Answers as the module does, by a runtime of arrays."""

    def __init__(self, package: Path, run: Run) -> None:
        import torch

        text = (package / ANSWER).read_text(encoding="utf-8")
        self._kind = torch.utils._pytree.treespec_loads(text)
        self._run = run
        self._torch = torch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The answer, where the arguments are; on the processor it shares the runtime's arrays."""
        given = tensors(args, kwargs)
        device = given[0].device if given else "cpu"
        arrays = [leaf.detach().cpu().numpy() for leaf in given]
        leaves = [self._torch.from_numpy(array).to(device) for array in self._run(arrays)]
        return self._torch.utils._pytree.tree_unflatten(leaves, self._kind)


def tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The tensors of a call in the order of its graph's inputs."""
    import torch

    leaves, _ = torch.utils._pytree.tree_flatten((tuple(args), dict(kwargs)))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
