"""Whether a build answers as the original does, on copies of real calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from loadwise.compiler.examples import Arguments, copied
from loadwise.errors import BuildError
from loadwise.ports import Form, Paced, at_once

# Largest difference allowed, as a share of the largest value: rounding in another order, not other numbers.
TOLERANCES = {"float64": 1e-8, "float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}


def difference(expected: Any, actual: Any, where: str = "answer", form: Form | None = None) -> str | None:
    """What differs beyond tolerance, or None: kinds, sizes, plain values exactly, numbers by tolerance.

    Numbers of a quantised form only have to be finite: how far they are off is measured elsewhere.
    """
    if hasattr(expected, "untyped_storage"):
        return _tensor_difference(expected, actual, where, form or Form())
    if isinstance(expected, dict):
        if not isinstance(actual, dict) or list(expected) != list(actual):
            return f"{where}: other keys"
        pairs = ((f"{where}[{key!r}]", expected[key], actual[key]) for key in expected)
        return next((found for name, a, b in pairs if (found := difference(a, b, name, form))), None)
    if isinstance(expected, list | tuple):
        if not isinstance(actual, list | tuple) or len(expected) != len(actual):
            return f"{where}: other length"
        items = enumerate(zip(expected, actual, strict=True))
        return next(
            (found for i, (a, b) in items if (found := difference(a, b, f"{where}[{i}]", form))), None
        )
    return None if expected == actual else f"{where}: {actual!r:.60} instead of {expected!r:.60}"


def _tolerance(dtype: str, form: Form) -> float | None:
    """As a share of the largest value; None: exactly. A form of lower precision is held to its own."""
    own = TOLERANCES.get(dtype)
    if own is None:
        return None
    return float("inf") if form.quantised else max(own, TOLERANCES[form.precision])


def _tensor_difference(expected: Any, actual: Any, where: str, form: Form) -> str | None:
    from loadwise.torch_engine.memory import parts

    if not hasattr(actual, "untyped_storage"):
        return f"{where}: no tensor"
    if (expected.shape, expected.dtype) != (actual.shape, actual.dtype):
        return (
            f"{where}: {actual.dtype}{list(actual.shape)} instead of {expected.dtype}{list(expected.shape)}"
        )
    tolerance = _tolerance(str(expected.dtype).removeprefix("torch."), form)
    # Parts that are equal to the last bit need no closer look, and no copies.
    pairs = zip(parts(expected.detach()), parts(actual.detach()), strict=True)
    unequal = [(a, b) for a, b in pairs if not bool((a == b).all())]
    if not unequal:
        return None
    if tolerance is None:
        return f"{where}: other values"
    found = [_apart(a.double(), b.double()) for a, b in unequal]
    if None in found:
        return f"{where}: infinities or NaN where the original has none, or the reverse"
    worst = max((one for one in found if one is not None), default=0.0)
    if worst == 0.0:
        return None
    scale = max(_largest(expected.detach()), 1e-6)
    share = worst / scale
    return (
        None if share <= tolerance else f"{where}: differs by {share:.2g} of its size ({tolerance:g} allowed)"
    )


def _apart(a: Any, b: Any) -> float | None:
    """The largest difference between finite numbers; None where infinities and NaN are not the same ones."""
    finite = a.isfinite()
    # `equal_nan` has no counterpart for a mask.
    odd = ~finite & ~((a == b) | (a.isnan() & b.isnan()))
    if bool(odd.any()) or bool((finite & ~b.isfinite()).any()):
        return None
    return float((a[finite] - b[finite]).abs().max()) if bool(finite.any()) else 0.0


def _largest(tensor: Any) -> float:
    """The largest finite number by size; 0.0 where there is none."""
    from loadwise.torch_engine.memory import parts

    largest = 0.0
    for part in parts(tensor):
        sizes = part[part.isfinite()].abs()
        largest = max(largest, float(sizes.max()) if sizes.numel() else 0.0)
    return largest


def verify(
    original: Callable[..., Any],
    candidate: Callable[..., Any],
    examples: Sequence[Arguments],
    *,
    form: Form | None = None,
    paced: Paced = at_once,
) -> None:
    """`BuildError` unless answers are equal and arguments are left the same, for every example.

    `paced` wraps what is computed, one piece of it at a time.
    """
    copy, compare = paced(copied), paced(difference)
    for number, (args, kwargs) in enumerate(examples):
        own, other = copy((args, kwargs)), copy((args, kwargs))
        expected = paced(original)(*own[0], **own[1])
        actual = paced(candidate)(*other[0], **other[1])
        found = compare(expected, actual, form=form)
        found = found or compare(own, other, "arguments afterwards", form)
        if found is not None:
            raise BuildError(
                f"The build is wrong for example {number + 1} ({found}).",
                remedy="The original serves. Try another compile_mode, or report the model.",
            )


def distance(
    original: Callable[..., Any], candidate: Callable[..., Any], examples: Sequence[Arguments]
) -> float:
    """Root mean square of what numbers in the answers differ by, as a share of their own; 0.0 is equal."""
    off = size = 0.0
    for args, kwargs in examples:
        own, other = copied((args, kwargs)), copied((args, kwargs))
        pairs = zip(
            _numbers(original(*own[0], **own[1])), _numbers(candidate(*other[0], **other[1])), strict=True
        )
        for a, b in pairs:
            off += float((a - b).square().sum())
            size += float(a.square().sum())
    return (off / size) ** 0.5 if size > 0 else 0.0


def _numbers(tree: Any) -> list[Any]:
    """Every tensor of floating-point numbers, in double precision."""
    if hasattr(tree, "untyped_storage"):
        return [tree.detach().double()] if tree.is_floating_point() else []
    if isinstance(tree, dict):
        return [found for value in tree.values() for found in _numbers(value)]
    return [found for value in tree for found in _numbers(value)] if isinstance(tree, list | tuple) else []
