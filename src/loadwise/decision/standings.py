"""What beliefs say of members before any request is there: worked out when a belief is new, not per request.

Between two requests one or two beliefs change. Only their members are worked out again; whatever a choice
asks of all of them lies ready, place by place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

from loadwise.decision.beliefs import BATCH_START, MEASURED_OUTCOMES, Belief, Health
from loadwise.decision.facts import Objectives
from loadwise.decision.quick import new

# What the first request on an idle member weighs: its batch begins to run.
STARTING: Final = 1.0 + BATCH_START
# Answers within objectives that are assumed at each level of load before any was seen.
MET_PRIOR: Final = 3.0
_HEALTHY: Final = Health.HEALTHY

# What a request takes of a member's objectives: its place and pool, what the request adds to the work there
# and what the first on an idle member does; and, by two lines over work, each as base and slope, its share of
# the first token's objective per prompt token, and of the objective per further token. A plain tuple, for
# loops take it apart.
Row = tuple[int, str, float, float, float, float, float, float]
_Value = TypeVar("_Value")


class Standings(NamedTuple):
    """The members of a lineup by their beliefs, at a level of load (0 to 2); its lists are never changed."""

    terms: Terms
    level: int
    known: list[Belief]
    rows: list[Row]
    # 0..1; an unknown one ranks as the mean of those known, neither for it nor against it.
    qualities: list[float]
    # The same squared, a quality of nearly 0 as one hundredth.
    esteems: list[float]
    # 0..1: the share of recent answers without a fault, doubtful before many were seen.
    reliable: list[float]
    # 0..1: that, and of those answers the share within objectives at this level.
    good: list[float]
    # What speaks for each whatever the load: given weight, reliability, good answers and esteem.
    stakes: list[float]
    # Reliability times quality, and the places from the highest to the lowest; None where some are equal.
    merits: list[float]
    ranked: list[int] | None
    # How many are out or on their ramp, were late lately, and were not measured yet.
    ailing: int
    late: int
    unmeasured: int
    # Until then everybody counts as measured lately.
    fresh_until_s: float

    def after(self, at: int, now: Belief) -> Standings:
        """The standings once the belief of one member is another."""
        terms, level, known, rows, qualities, esteems, reliable, good, stakes, merits, ranked, *rest = self
        before, known = known[at], _changed(known, at, now)
        if now.quality != before.quality:
            # The mean may be another too.
            return standings_of(terms, known, level)
        reliability = reliability_of(now)
        fine = reliability * met_of(now, level)
        if reliability != reliable[at] or fine != good[at]:
            good = _changed(good, at, fine)
            stakes = _changed(stakes, at, terms.weights[at] * fine * reliability * esteems[at])
        if reliability != reliable[at]:
            reliable = _changed(reliable, at, reliability)
            merits = _changed(merits, at, reliability * qualities[at])
            ranked = ranking(merits)
        ailing, late, unmeasured, fresh_s = rest
        return new(Standings, (
            terms, level, known, _changed(rows, at, row_of(terms, at, now)),
            qualities, esteems, reliable, good, stakes, merits, ranked,
            ailing + (now.health is not _HEALTHY) - (before.health is not _HEALTHY),
            late + (now.recent_misses > 0.0) - (before.recent_misses > 0.0),
            unmeasured + (now.outcomes < MEASURED_OUTCOMES) - (before.outcomes < MEASURED_OUTCOMES),
            _fresh_until_s(known) if before.stale_at_s == fresh_s or now.stale_at_s < fresh_s else fresh_s,
        ))  # fmt: skip


class Terms(NamedTuple):
    """What members are judged by: the route's objectives, and each one's pool and given weight."""

    objectives: Objectives
    pools: tuple[str, ...]
    weights: tuple[float, ...]


def standings_of(terms: Terms, known: list[Belief], level: int) -> Standings:
    """The standings of members with these beliefs, in their order."""
    places, qualities = range(len(known)), qualities_of(known)
    reliable, esteems = [reliability_of(belief) for belief in known], [max(q, 0.01) ** 2 for q in qualities]
    good = [reliable[at] * met_of(known[at], level) for at in places]
    merits = [reliable[at] * qualities[at] for at in places]
    return Standings(
        terms=terms,
        level=level,
        known=known,
        rows=[row_of(terms, at, known[at]) for at in places],
        qualities=qualities,
        esteems=esteems,
        reliable=reliable,
        good=good,
        stakes=[terms.weights[at] * good[at] * reliable[at] * esteems[at] for at in places],
        merits=merits,
        ranked=ranking(merits),
        ailing=sum([belief.health is not _HEALTHY for belief in known]),
        late=sum([belief.recent_misses > 0.0 for belief in known]),
        unmeasured=sum([belief.outcomes < MEASURED_OUTCOMES for belief in known]),
        fresh_until_s=_fresh_until_s(known),
    )


def row_of(terms: Terms, at: int, belief: Belief) -> Row:
    """What a request takes of a member's objectives, with its trend."""
    objectives, pools, _ = terms
    cost, trend = belief.cost, belief.trend
    first = trend / objectives.time_to_first_token_s
    each = trend / objectives.time_per_output_token_s
    first_base, first_slope = belief.first_fit
    each_base, each_slope = belief.output_fit
    return (
        at, pools[at], cost, cost * STARTING,
        first_base * first, first_slope * first, each_base * each, each_slope * each,
    )  # fmt: skip


def qualities_of(known: Sequence[Belief]) -> list[float]:
    """0..1 of each; an unknown one is the mean of those known."""
    declared = [belief.quality for belief in known]
    told = [quality for quality in declared if quality is not None]
    if len(told) == len(declared):
        return told
    mean = sum(told) / len(told) if told else 1.0
    return [mean if quality is None else quality for quality in declared]


def reliability_of(belief: Belief) -> float:
    """0..1: the share of recent answers without a fault."""
    faults = belief.recent_faults
    return 1.0 - faults / (belief.recent + 2.0) if faults else 1.0


def met_of(belief: Belief, level: int) -> float:
    """0..1: the share of answers within objectives at a level of load (1 where none was seen)."""
    timed, within = belief.by_load[level]
    return (within + MET_PRIOR) / (timed + MET_PRIOR)


def ranking(merits: Sequence[float]) -> list[int] | None:
    """Places from the highest merit to the lowest; None where some are equal."""
    if len(set(merits)) < len(merits):
        return None
    return sorted(range(len(merits)), key=merits.__getitem__, reverse=True)


def _fresh_until_s(known: Sequence[Belief]) -> float:
    return min([belief.stale_at_s for belief in known])


def _changed(values: list[_Value], at: int, value: _Value) -> list[_Value]:
    values = values.copy()
    values[at] = value
    return values
