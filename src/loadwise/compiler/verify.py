"""Whether a build answers as the original does, and how much faster: both measured, on copies."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loadwise.compiler.examples import Arguments, copied
from loadwise.errors import BuildError
from loadwise.ports import Clock

# Largest difference allowed, as a share of the largest value: rounding in another order, not other numbers.
TOLERANCES = {"float64": 1e-8, "float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}
MIN_RUNS, MAX_RUNS = 3, 50
TIMING_BUDGET_S = 1.0
# A build must be faster by more than measurements differ.
MIN_GAIN = 0.02


@dataclass(frozen=True, slots=True)
class Timing:
    """Medians of interleaved runs, in seconds."""

    original_s: float
    compiled_s: float

    @property
    def speedup(self) -> float:
        """Above 1 when the build is faster."""
        return self.original_s / self.compiled_s if self.compiled_s > 0 else float("inf")


def difference(expected: Any, actual: Any, where: str = "answer") -> str | None:
    """What differs beyond tolerance, or None: kinds, sizes, plain values exactly, numbers by tolerance."""
    if hasattr(expected, "untyped_storage"):
        return _tensor_difference(expected, actual, where)
    if isinstance(expected, dict):
        if not isinstance(actual, dict) or list(expected) != list(actual):
            return f"{where}: other keys"
        pairs = ((f"{where}[{key!r}]", expected[key], actual[key]) for key in expected)
        return next((found for name, a, b in pairs if (found := difference(a, b, name))), None)
    if isinstance(expected, list | tuple):
        if not isinstance(actual, list | tuple) or len(expected) != len(actual):
            return f"{where}: other length"
        items = enumerate(zip(expected, actual, strict=True))
        return next((found for i, (a, b) in items if (found := difference(a, b, f"{where}[{i}]"))), None)
    return None if expected == actual else f"{where}: {actual!r:.60} instead of {expected!r:.60}"


def _tensor_difference(expected: Any, actual: Any, where: str) -> str | None:
    if not hasattr(actual, "untyped_storage"):
        return f"{where}: no tensor"
    if (expected.shape, expected.dtype) != (actual.shape, actual.dtype):
        return (
            f"{where}: {actual.dtype}{list(actual.shape)} instead of {expected.dtype}{list(expected.shape)}"
        )
    tolerance = TOLERANCES.get(str(expected.dtype).removeprefix("torch."))
    if tolerance is None:
        return None if bool((expected == actual).all()) else f"{where}: other values"
    a, b = expected.detach().double(), actual.detach().double()
    finite = a.isfinite()
    # Infinities and NaN must be the same ones; `equal_nan` has no counterpart for a mask.
    odd = ~finite & ~((a == b) | (a.isnan() & b.isnan()))
    if bool(odd.any()) or bool((finite & ~b.isfinite()).any()):
        return f"{where}: infinities or NaN where the original has none, or the reverse"
    if not bool(finite.any()):
        return None
    scale = max(float(a[finite].abs().max()), 1e-6)
    worst = float((a[finite] - b[finite]).abs().max()) / scale
    return (
        None if worst <= tolerance else f"{where}: differs by {worst:.2g} of its size ({tolerance:g} allowed)"
    )


def verify(
    original: Callable[..., Any], candidate: Callable[..., Any], examples: Sequence[Arguments]
) -> None:
    """`BuildError` unless answers are equal and arguments are left the same, for every example."""
    for number, (args, kwargs) in enumerate(examples):
        own, other = copied((args, kwargs)), copied((args, kwargs))
        expected, actual = original(*own[0], **own[1]), candidate(*other[0], **other[1])
        found = difference(expected, actual) or difference(own, other, "arguments afterwards")
        if found is not None:
            raise BuildError(
                f"The build is wrong for example {number + 1} ({found}).",
                remedy="The original serves. Try another compile_mode, or report the model.",
            )


def measure(
    original: Callable[..., Any], candidate: Callable[..., Any], example: Arguments, clock: Clock
) -> Timing:
    """Times both in turns on one example, about a second in all."""
    args, kwargs = copied(example)
    times: tuple[list[float], list[float]] = ([], [])
    started_s = clock.monotonic_s()
    for run in range(MAX_RUNS + 1):
        for call, seen in zip((original, candidate), times, strict=True):
            before_s = clock.monotonic_s()
            call(*args, **kwargs)
            _synchronize(args)
            seen.append(clock.monotonic_s() - before_s)
        if run >= MIN_RUNS and clock.monotonic_s() - started_s > TIMING_BUDGET_S:
            break
    # The first run of each is a warm-up.
    return Timing(statistics.median(times[0][1:]), statistics.median(times[1][1:]))


def _synchronize(args: tuple[Any, ...]) -> None:
    """A GPU answers before it has finished."""
    device = next((arg.device for arg in args if hasattr(arg, "untyped_storage")), None)
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
