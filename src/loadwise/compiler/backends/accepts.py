"""Which calls a compiled graph can take: sizes in the ranges it was traced for, all else as traced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class TensorRule:
    """What one tensor must be; a size is a number, or the name of one that varies."""

    sizes: tuple[int | str, ...]
    # As torch prints them: "torch.float32", "cpu".
    dtype: str
    device: str

    def takes(self, leaf: Any, bound: dict[str, int], ranges: Mapping[str, tuple[float, float]]) -> bool:
        """Whether `leaf` fits, contiguous; equal names mean equal sizes over the whole call."""
        shape = getattr(leaf, "shape", None)
        if shape is None or len(shape) != len(self.sizes):
            return False
        if str(leaf.dtype) != self.dtype or str(leaf.device) != self.device:
            return False
        for given, size in zip(shape, self.sizes, strict=True):
            if isinstance(size, int):
                if given != size:
                    return False
                continue
            low, high = ranges[size]
            if not low <= given <= high or bound.setdefault(size, given) != given:
                return False
        return bool(leaf.is_contiguous())


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The rules of one graph, leaf by leaf."""

    structure: Any
    rules: tuple[Any, ...]
    ranges: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, program: Any, example: Arguments) -> Acceptance:
        """Read off an exported program and the example that it was traced with."""
        import torch

        leaves, structure = torch.utils._pytree.tree_flatten((tuple(example[0]), dict(example[1])))
        inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
        fakes = [node.meta.get("val") for node in inputs[len(inputs) - len(leaves) :]]
        ranges = {
            # Tracing took sizes that vary to be 2 or more.
            str(symbol): (max(float(found.lower), 2.0), float(found.upper))
            for symbol, found in program.range_constraints.items()
        }
        rules = tuple(_rule(leaf, fake, ranges) for leaf, fake in zip(leaves, fakes, strict=True))
        return cls(structure, rules, ranges)

    def as_json(self) -> str:
        """For `from_json` in another process."""
        import torch

        rules = [asdict(rule) if isinstance(rule, TensorRule) else {"same": rule} for rule in self.rules]
        structure = torch.utils._pytree.treespec_dumps(self.structure)
        return json.dumps({"structure": structure, "rules": rules, "ranges": dict(self.ranges)})

    @classmethod
    def from_json(cls, text: str) -> Acceptance:
        """What `as_json` wrote."""
        import torch

        values = json.loads(text)
        rules = tuple(
            rule["same"]
            if "same" in rule
            else TensorRule(tuple(rule["sizes"]), rule["dtype"], rule["device"])
            for rule in values["rules"]
        )
        ranges = {name: (low, high) for name, (low, high) in values["ranges"].items()}
        return cls(torch.utils._pytree.treespec_loads(values["structure"]), rules, ranges)

    def takes(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call fits; a few microseconds."""
        import torch

        leaves, structure = torch.utils._pytree.tree_flatten((tuple(args), dict(kwargs)))
        if structure != self.structure:
            return False
        bound: dict[str, int] = {}
        for leaf, rule in zip(leaves, self.rules, strict=True):
            fits = rule.takes(leaf, bound, self.ranges) if isinstance(rule, TensorRule) else _same(leaf, rule)
            if not fits:
                return False
        return True


def _same(leaf: Any, value: Any) -> bool:
    return type(leaf) is type(value) and bool(leaf == value)


def _rule(leaf: Any, fake: Any, ranges: Mapping[str, tuple[float, float]]) -> Any:
    if not hasattr(leaf, "untyped_storage"):
        return leaf
    sizes = tuple(
        # A size that is computed from others is taken as the example's.
        str(traced) if str(traced) in ranges else int(actual)
        for actual, traced in zip(leaf.shape, fake.shape, strict=True)
    )
    return TensorRule(sizes, str(leaf.dtype), str(leaf.device))
