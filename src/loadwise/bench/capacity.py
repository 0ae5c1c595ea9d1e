"""What a model sustains: the highest rate at which enough requests stay within their objectives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from loadwise.bench.summary import Summary

# Serves the workload at a rate (requests per second), in one or more runs that are counted together.
AtRate = Callable[[float], Awaitable[Sequence[Summary]]]


@dataclass(frozen=True, slots=True)
class Probe:
    """One short run: the rate asked for, the workload's actual rate, and the share within objectives."""

    rate_per_s: float
    offered_per_s: float
    within_fraction: float
    sustained: bool


@dataclass(frozen=True, slots=True)
class Capacity:
    """The highest rate seen to be sustained (0 when none was), the lowest seen not to be, and all probes."""

    sustained_per_s: float
    # None: the limit of the search was still sustained.
    failed_per_s: float | None
    probes: tuple[Probe, ...]


async def find_capacity(
    at_rate: AtRate,
    *,
    start_per_s: float = 1.0,
    limit_per_s: float = 10_000.0,
    floor_per_s: float = 0.01,
    wanted_fraction: float = 0.95,
    tolerance: float = 0.1,
) -> Capacity:
    """Doubles (or halves) the rate until a bound lies on each side, then bisects to within `tolerance`.

    Rates are bisected on a logarithmic scale: the answer is known to a factor of `1 + tolerance`.
    """
    probes: list[Probe] = []

    async def sustained(rate_per_s: float) -> bool:
        runs = await at_rate(rate_per_s)
        requests = sum(run.requests for run in runs)
        within_fraction = sum(run.within_objectives for run in runs) / max(1, requests)
        holds = within_fraction >= wanted_fraction
        offered_per_s = requests / sum(run.duration_s for run in runs)
        probes.append(Probe(rate_per_s, offered_per_s, within_fraction, holds))
        return holds

    low, high = await _bracket(sustained, start_per_s, limit_per_s, floor_per_s)
    while low > 0 and high is not None and high / low > 1.0 + tolerance:
        middle = (low * high) ** 0.5
        if await sustained(middle):
            low = middle
        else:
            high = middle
    return Capacity(low, high, tuple(probes))


async def _bracket(
    sustained: Callable[[float], Awaitable[bool]], start: float, limit: float, floor: float
) -> tuple[float, float | None]:
    """(sustained, not sustained); the first is 0 or the second None where the search's range ends."""
    rate = start
    if await sustained(rate):
        while rate * 2 <= limit:
            rate *= 2
            if not await sustained(rate):
                return rate / 2, rate
        return rate, None
    while rate / 2 >= floor:
        rate /= 2
        if await sustained(rate):
            return rate, rate * 2
    return 0.0, rate
