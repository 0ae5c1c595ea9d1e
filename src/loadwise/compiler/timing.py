"""How much faster a build is than the original: measured in pairs, with what the noise allows to say."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

from loadwise.compiler.examples import Arguments, copied
from loadwise.ports import Clock

# Six pairs are the fewest of which an interval with 95 % confidence can be had.
MIN_RUNS, MAX_RUNS = 6, 50
TIMING_BUDGET_S = 1.0
# Less is not worth a change of what serves.
MIN_GAIN = 0.02
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Timing:
    """Medians of interleaved runs in seconds, and the 95 % interval of the speed-up of pairs."""

    original_s: float
    compiled_s: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, original_s: Sequence[float], compiled_s: Sequence[float]) -> Timing:
        """From times of runs in turns: the pairs are neighbours, so that both met the same disturbance."""
        pairs = zip(original_s, compiled_s, strict=True)
        ratios = [a / b if b > 0 else float("inf") for a, b in pairs]
        return cls(statistics.median(original_s), statistics.median(compiled_s), median_interval(ratios))

    @property
    def speedup(self) -> float:
        """Above 1 when the build is faster."""
        return self.original_s / self.compiled_s if self.compiled_s > 0 else float("inf")

    @property
    def faster(self) -> bool:
        """Whether it is faster by a margin worth having, and certainly not slower."""
        return self.compiled_s < self.original_s * (1 - MIN_GAIN) and self.interval[0] > 1.0


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Order statistics around the median that hold it with 95 % confidence; the extremes if there are few."""
    ordered = sorted(values)
    count, below, rank = len(ordered), 0.0, 0
    while rank < count // 2:
        below += comb(count, rank) / 2**count
        if below > (1 - _CONFIDENCE) / 2:
            break
        rank += 1
    place = max(0, rank - 1)
    return ordered[place], ordered[count - 1 - place]


def measure(
    original: Callable[..., Any],
    candidate: Callable[..., Any],
    example: Arguments,
    clock: Clock,
    rest_after: Callable[[float], None] = lambda computed_s: None,
) -> Timing:
    """Times both in turns on one example, about a second of computing; `rest_after` follows each call."""
    args, kwargs = copied(example)
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(MAX_RUNS + 1):
        for call, seen in zip((original, candidate), times, strict=True):
            before_s = clock.monotonic_s()
            call(*args, **kwargs)
            _synchronize(args)
            seen.append(clock.monotonic_s() - before_s)
            rest_after(seen[-1])
        if run >= MIN_RUNS and sum(map(sum, times)) > TIMING_BUDGET_S:
            break
    # The first run of each is a warm-up.
    return Timing.of(times[0][1:], times[1][1:])


def _synchronize(args: tuple[Any, ...]) -> None:
    """A GPU answers before it has finished."""
    device = next((arg.device for arg in args if hasattr(arg, "untyped_storage")), None)
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
