"""What optimisation gained, measured between blocks of time with and without it (switchback).

Requests on one engine share its queue, so the unit of comparison is a block of time, not a request.
Neighbouring blocks of either kind are paired; the mean of the pairs' differences in the share within
objectives carries a 95 % interval (Student's t over pairs). Too few blocks: no figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final

PAIRS_NEEDED: Final = 6
REQUESTS_PER_BLOCK: Final = 10
# Two-sided 95 % quantiles of Student's t by degrees of freedom (1 to 30), then the normal's.
T95: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A stretch of time in which every unforced request was treated alike."""

    started_s: float
    optimised: bool
    requests: int
    within_objectives: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """Optimised minus unoptimised share within objectives, its 95 % interval and its parts (-1..1)."""

    value: float
    low: float
    high: float
    optimised_fraction: float
    unoptimised_fraction: float
    pairs: int
    requests: int


def improvement(blocks: Sequence[Block]) -> Improvement | None:
    """The gain over the blocks so far, in order of time; None while there is not enough evidence."""
    pairs = _pairs(blocks)
    if len(pairs) < PAIRS_NEEDED:
        return None
    gains = [_share(on) - _share(off) for on, off in pairs]
    mean = sum(gains) / len(gains)
    spread = sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)
    # Identical blocks say little of those to come: at least the binomial error of their requests counts.
    error = max(sqrt(spread / len(gains)), _binomial_error(pairs))
    reach = _t95(len(gains) - 1) * error
    return Improvement(
        value=mean,
        low=max(-1.0, mean - reach),
        high=min(1.0, mean + reach),
        optimised_fraction=sum(_share(on) for on, _ in pairs) / len(pairs),
        unoptimised_fraction=sum(_share(off) for _, off in pairs) / len(pairs),
        pairs=len(pairs),
        requests=sum(on.requests + off.requests for on, off in pairs),
    )


def _pairs(blocks: Sequence[Block]) -> list[tuple[Block, Block]]:
    """Neighbouring blocks of different kinds as (optimised, unoptimised), each block used once."""
    found: list[tuple[Block, Block]] = []
    waiting: Block | None = None
    for block in blocks:
        if block.requests < REQUESTS_PER_BLOCK:
            continue
        if waiting is None or waiting.optimised is block.optimised:
            waiting = block
            continue
        found.append((block, waiting) if block.optimised else (waiting, block))
        waiting = None
    return found


def _share(block: Block) -> float:
    return block.within_objectives / block.requests


def _binomial_error(pairs: Sequence[tuple[Block, Block]]) -> float:
    """The standard error that independent requests alone would give (Agresti and Coull's shares)."""
    variance = 0.0
    for side in (0, 1):
        requests = sum(pair[side].requests for pair in pairs)
        within = sum(pair[side].within_objectives for pair in pairs)
        share = (within + 2.0) / (requests + 4.0)
        variance += share * (1.0 - share) / (requests + 4.0)
    return sqrt(variance)


def _t95(degrees: int) -> float:
    return T95[degrees - 1] if degrees <= len(T95) else 1.96
