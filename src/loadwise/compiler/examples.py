"""What a model is called with: learned from its calls, copied, bounded in number and in bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]

MAX_EXAMPLES = 4
MAX_EXAMPLE_BYTES = 256 * 1024**2
# Arguments of more are caches, of which a call uses little.
LARGE_BYTES = 4 * 1024**2


def signature(tree: Any) -> Any:
    """A hashable description of arguments: kinds and sizes of tensors, plain values themselves."""
    if hasattr(tree, "untyped_storage"):
        return ("tensor", tuple(tree.shape), tree.dtype, str(tree.device))
    if type(tree) is dict:
        return ("dict", tuple((name, signature(tree[name])) for name in sorted(tree, key=str)))
    if _is_row(tree):
        return (type(tree).__name__, tuple(signature(value) for value in tree))
    if tree is None or isinstance(tree, bool | int | float | str):
        return (type(tree).__name__, tree)
    return ("object", type(tree).__qualname__)


def copied(tree: Any) -> Any:
    """The same arguments with tensors of their own; of large ones zeros take no memory."""
    if hasattr(tree, "untyped_storage"):
        return _copied_tensor(tree.detach())
    if type(tree) is dict:
        return {name: copied(value) for name, value in tree.items()}
    if type(tree) is list:
        return [copied(value) for value in tree]
    if _is_row(tree):
        # A named tuple is made of arguments, a plain one of an iterable.
        parts = [copied(value) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


def _copied_tensor(tensor: Any) -> Any:
    if size_bytes(tensor) < LARGE_BYTES or tensor.device.type != "cpu" or tensor.dim() == 0:
        return tensor.contiguous().clone()
    from loadwise.torch_engine.memory import thin_copy

    return thin_copy(tensor)


def copyable(tree: Any) -> bool:
    """Whether a copy shares nothing that a call could change: tensors, plain values, and rows of them."""
    if type(tree) is dict:
        return all(copyable(value) for value in tree.values())
    if _is_row(tree):
        return all(copyable(value) for value in tree)
    plain = tree is None or isinstance(tree, bool | int | float | str)
    return plain or hasattr(tree, "untyped_storage")


def _is_row(tree: Any) -> bool:
    """Lists, tuples and named tuples, not other kinds of them with a life of their own."""
    return type(tree) in (list, tuple) or (isinstance(tree, tuple) and hasattr(tree, "_fields"))


def size_bytes(tree: Any) -> int:
    """Bytes of all tensors."""
    if hasattr(tree, "untyped_storage"):
        return int(tree.numel() * tree.element_size())
    if isinstance(tree, Mapping):
        return sum(size_bytes(value) for value in tree.values())
    if isinstance(tree, list | tuple):
        return sum(size_bytes(value) for value in tree)
    return 0


class Examples:
    """Given ones are made when they are needed; others are learned, one per signature, in order."""

    def __init__(self, given: Callable[[], Sequence[tuple[Any, ...]]] | None = None) -> None:
        self._given = given
        self._learned: dict[Any, Arguments] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def learn(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Copies arguments of a new signature; True when that was the first example."""
        if self._given is not None or len(self._learned) >= MAX_EXAMPLES:
            return False
        if not copyable((args, dict(kwargs))):
            return False
        kind = signature((args, dict(kwargs)))
        with self._lock:
            size = size_bytes((args, kwargs))
            if kind in self._learned or self._bytes + size > MAX_EXAMPLE_BYTES:
                return False
            self._learned[kind] = (copied(args), copied(dict(kwargs)))
            self._bytes += size
            return len(self._learned) == 1

    def prefer(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """The next build is made for calls like this one, before all that were learned earlier."""
        if self._given is not None or not copyable((args, dict(kwargs))):
            return
        kind = signature((args, dict(kwargs)))
        with self._lock:
            known = self._learned.get(kind) or (copied(args), copied(dict(kwargs)))
            others = [pair for pair in self._learned.items() if pair[0] != kind]
            kept, held = {kind: known}, size_bytes(known)
            for name, example in others[: MAX_EXAMPLES - 1]:
                if held + size_bytes(example) <= MAX_EXAMPLE_BYTES:
                    kept[name] = example
                    held += size_bytes(example)
            self._learned, self._bytes = kept, held

    def all(self) -> list[Arguments]:
        """Copies for one build to work with; empty before the first call."""
        if self._given is not None:
            return [(args, {}) for args in self._given()]
        with self._lock:
            return [(copied(args), copied(dict(kwargs))) for args, kwargs in self._learned.values()]

    @property
    def known(self) -> bool:
        """Whether a build can start."""
        return self._given is not None or bool(self._learned)
