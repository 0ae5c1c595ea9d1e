"""What optimisation gained, measured between blocks of time with and without it (switchback).

Requests on one engine share its queue, so the unit of inference is a block of time, not a request.
Blocks are compared within their stratum of neighbours only, which takes the hour of day out, after what
blocks of like load had before is taken off, which takes bursts out. Strata are put together with the weights
of Mantel and Haenszel (1959): under equal policies every placing of the unoptimised blocks is as likely, and
the sum of weighted differences is 0 on average, however load and queues hang together in time.

An unoptimised block that was suspended stays one (intention to treat). The rest of its requests count as
missed; the interval reaches from the one extreme, all of them within objectives, to the other. So it is with
requests of either kind that were open when the process died, for nobody saw how they ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import exp, log, log2, sqrt
from typing import Final, NamedTuple

from loadwise.decision.intervals import Interval, around

# Strata with blocks of both kinds before which nothing is said.
FIRST_LOOK: Final = 10
# Strata at which the interval is narrowest for its kind.
NARROWEST_AT: Final = 30.0
# A ratio's logarithm beyond which it is no statement: a million times.
WIDEST: Final = 6.0 * log(10.0)
# Classes of load: each about a fifth above the one before.
LOADS_PER_DOUBLING: Final = 4.0


class Amount(NamedTuple):
    """Requests that an outcome could be read of, and the outcome's sum over them."""

    requests: float = 0.0
    total: float = 0.0

    def plus(self, other: Amount) -> Amount:
        """Both together."""
        return Amount(self.requests + other.requests, self.total + other.total)

    def minus(self, other: Amount) -> Amount:
        """This without the other, which is part of it."""
        return Amount(self.requests - other.requests, self.total - other.total)


NOTHING: Final = Amount()


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A stretch of time in which a whole pool was treated alike.

    `within` sums 1 for a request within its objectives; the others sum natural logarithms of seconds.
    """

    stratum: int
    control: bool
    within: Amount = NOTHING
    first_token: Amount = NOTHING
    output_token: Amount = NOTHING
    whole: Amount = NOTHING
    # Requests of an unoptimised block after it was suspended; they are in no other figure.
    suspended: int = 0
    # Requests that were open when the process died, in no other figure either.
    lost: int = 0


class Difference(NamedTuple):
    """One stratum: optimised minus unoptimised mean at like load, the optimised mean, and its weight."""

    difference: float
    optimised: float
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """Optimised minus unoptimised share within objectives (-1..1), its 95 % interval and its parts.

    Suspended and lost requests count as missed in `value` and in the fractions, and suspended ones as within
    objectives in `if_suspended_within`; `low` and `high` hold for whatever either would have been.
    """

    value: float
    low: float
    high: float
    optimised_fraction: float
    unoptimised_fraction: float
    if_suspended_within: float
    strata: int
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gains:
    """The gain in goodput, and latencies as optimised over unoptimised (below 1 is faster).

    A figure is None before its first look.
    """

    goodput: Improvement | None
    time_to_first_token: Interval | None
    time_per_output_token: Interval | None
    whole_latency: Interval | None
    # Strata compared so far, of `FIRST_LOOK`, and unoptimised blocks: all, and those cut short.
    strata: int
    control_blocks: int
    suspended_blocks: int
    # Requests of all blocks that were open when the process died.
    lost_requests: int = 0


def gains(blocks: Sequence[Block]) -> Gains:
    """Everything the blocks say, in order of time."""
    return Gains(
        goodput=improvement(blocks),
        time_to_first_token=latency_ratio(blocks, lambda block: block.first_token),
        time_per_output_token=latency_ratio(blocks, lambda block: block.output_token),
        whole_latency=latency_ratio(blocks, lambda block: block.whole),
        strata=len(differences(blocks, _missed)),
        control_blocks=sum(block.control for block in blocks),
        suspended_blocks=sum(block.suspended > 0 for block in blocks),
        lost_requests=sum(block.lost for block in blocks),
    )


def improvement(blocks: Sequence[Block]) -> Improvement | None:
    """The gain in goodput over the blocks so far; None before the first look."""
    lost = any(block.lost for block in blocks)
    missed, met = (differences(blocks, end) for end in SUSPENDED_ENDS)
    ends = [differences(blocks, end) for end in (LOST_ENDS if lost else ())]
    return joined(missed, met, requests_of(blocks), ends)


def joined(
    missed: Sequence[Difference],
    met: Sequence[Difference],
    requests: int,
    ends: Sequence[Sequence[Difference]] = (),
) -> Improvement | None:
    """The gain from the strata's differences at both extremes of what was suspended, and at `ends`."""
    if len(missed) < FIRST_LOOK:
        return None
    weight = sum(each.weight for each in missed)
    optimised = sum(each.weight * each.optimised for each in missed) / weight
    error = _binomial_error(optimised, weight)
    found = [estimate(each, error) for each in (missed, met, *ends)]
    most, least, *further = (end.clipped(-1.0, 1.0) for end in found if end is not None)
    return Improvement(
        value=most.value,
        low=min(end.low for end in (most, least, *further)),
        high=max(end.high for end in (most, least, *further)),
        optimised_fraction=optimised,
        unoptimised_fraction=min(1.0, max(0.0, optimised - most.value)),
        if_suspended_within=least.value,
        strata=len(missed),
        requests=requests,
    )


def latency_ratio(blocks: Sequence[Block], amount: Callable[[Block], Amount]) -> Interval | None:
    """Optimised over unoptimised latency (geometric means); None before the first look.

    At its extremes a suspended request was as fast, or as slow, as the fastest or slowest block.
    """
    means = [seen.total / seen.requests for block in blocks if (seen := amount(block)).requests]
    ends = []
    for mean in (min(means, default=0.0), max(means, default=0.0)):
        found = estimate(differences(blocks, _filled(amount, mean)))
        if found is None:
            return None
        ends.append(found)
    fastest, slowest = ends
    return Interval(
        value=_ratio(slowest.value),
        low=_ratio(min(fastest.low, slowest.low)),
        high=_ratio(max(fastest.high, slowest.high)),
    )


def _ratio(logarithm: float) -> float:
    """The ratio, or the end of its range: one busy stratum among quiet ones tells nothing, by any width."""
    return exp(min(WIDEST, max(-WIDEST, logarithm)))


def differences(blocks: Iterable[Block], amount: Callable[[Block], Amount]) -> list[Difference]:
    """The strata that have requests of both kinds, in order of time."""
    found, expected = [], _Expected()
    for _, stratum in groupby(blocks, key=lambda block: block.stratum):
        kinds = [NOTHING, NOTHING]
        surplus = [0.0, 0.0]
        seen = [(block.control, amount(block)) for block in stratum]
        for control, each in seen:
            kinds[control] = kinds[control].plus(each)
            surplus[control] += each.total - expected.of(each)
        for _, each in seen:
            expected.learn(each)
        on, off = kinds
        if on.requests and off.requests:
            weight = on.requests * off.requests / (on.requests + off.requests)
            gained = surplus[0] / on.requests - surplus[1] / off.requests
            found.append(Difference(gained, on.total / on.requests, weight))
    return found


class _Expected:
    """What blocks of like load had before, of either kind: it takes chance out and brings no bias in.

    Which blocks go unoptimised is drawn without regard to it, and it knows nothing of their own stratum.
    """

    def __init__(self) -> None:
        self._all = NOTHING
        self._by_load: dict[int, Amount] = {}

    def of(self, amount: Amount) -> float:
        """The outcome's sum to be expected of so many requests."""
        if not amount.requests or not self._all.requests:
            return 0.0
        mean = self._all.total / self._all.requests
        like = self._by_load.get(_load(amount), NOTHING)
        # One block's worth of the overall mean steadies loads that were seldom seen.
        return amount.requests * (like.total + amount.requests * mean) / (like.requests + amount.requests)

    def learn(self, amount: Amount) -> None:
        """The block is past."""
        if amount.requests:
            self._all = self._all.plus(amount)
            at = _load(amount)
            self._by_load[at] = self._by_load.get(at, NOTHING).plus(amount)


def _load(amount: Amount) -> int:
    """Loads within a fifth of each other are alike."""
    return round(LOADS_PER_DOUBLING * log2(amount.requests))


def estimate(found: Sequence[Difference], least_error: float = 0.0) -> Interval | None:
    """The weighted mean difference with its interval; None before the first look."""
    if len(found) < FIRST_LOOK:
        return None
    weight = sum(each.weight for each in found)
    mean = sum(each.weight * each.difference for each in found) / weight
    spread = sum((each.weight * (each.difference - mean)) ** 2 for each in found)
    error = sqrt(spread * len(found) / (len(found) - 1)) / weight
    # Strata of unequal weight are worth fewer (Kish 1965, section 8.2).
    worth = weight * weight / sum(each.weight * each.weight for each in found)
    degrees = max(1.0, worth - 1.0)
    return around(mean, max(error, least_error), evidence=worth / NARROWEST_AT, degrees=degrees)


def requests_of(blocks: Iterable[Block]) -> int:
    """Requests of all blocks, suspended and lost ones with them."""
    return int(sum(block.within.requests + block.suspended + block.lost for block in blocks))


def _missed(block: Block) -> Amount:
    return block.within.plus(Amount(block.suspended + block.lost, 0.0))


def _met(block: Block) -> Amount:
    return block.within.plus(Amount(block.suspended + block.lost, block.suspended))


def _least(block: Block) -> Amount:
    """Every unseen request without optimisation was within its objectives, none with it."""
    unseen = block.suspended + block.lost
    return block.within.plus(Amount(unseen, float(unseen) if block.control else 0.0))


def _most(block: Block) -> Amount:
    """Every unseen request with optimisation was within its objectives, none without it."""
    unseen = block.suspended + block.lost
    return block.within.plus(Amount(unseen, 0.0 if block.control else float(unseen)))


# What of a block is compared at the extremes of its suspended requests, and of its lost ones.
SUSPENDED_ENDS: Final = (_missed, _met)
LOST_ENDS: Final = (_least, _most)


def _filled(amount: Callable[[Block], Amount], mean: float) -> Callable[[Block], Amount]:
    """`amount` with the suspended requests at `mean`."""

    def filled(block: Block) -> Amount:
        return amount(block).plus(Amount(block.suspended, block.suspended * mean))

    return filled


def _binomial_error(share: float, weight: float) -> float:
    """The standard error that independent requests alone would give (Agresti and Coull's share).

    Identical blocks say little of those to come. `weight` is 1 / (1 / optimised + 1 / unoptimised requests).
    """
    adjusted = (share * weight + 2.0) / (weight + 4.0)
    return sqrt(adjusted * (1.0 - adjusted) / (weight + 4.0))
