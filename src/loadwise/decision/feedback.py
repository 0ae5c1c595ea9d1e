"""What people and judges say of answers, and how far that moves the quality that is believed of a member.

- The operator's quality stays the prior; it weighs `PRIOR_WEIGHT` scores.
- No tenant has more than `TENANT_SHARE` of the influence, the prior's included, however much it says.
- Scores below what is believed lower it at once. Scores above raise it only where many say so, and only to
  what they prove: the lower end of the mean's interval.
- Scores fade with a half-life, so that what was said of an earlier model is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Final, NamedTuple

PRIOR_WEIGHT: Final = 20.0
TENANT_SHARE: Final = 0.10
# Scores before quality is raised, and the one-sided normal quantile (95 %) that they must prove it by.
SCORES_TO_RAISE: Final = 30.0
PROOF: Final = 1.645
HALF_LIFE_S: Final = 7 * 86_400.0
# Feedback is taken for this long after an answer ended.
LATEST_S: Final = 7 * 86_400.0
# Equal scores do not prove that the next will be equal.
LEAST_VARIANCE: Final = 0.01


class Tally(NamedTuple):
    """One tenant's scores (0..1) of one member, faded to `at_s`: their weight, sum and sum of squares."""

    weight: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    at_s: float = 0.0

    def faded(self, now_s: float) -> Tally:
        """The tally at `now_s`; earlier times change nothing."""
        kept = 0.5 ** (max(0.0, now_s - self.at_s) / HALF_LIFE_S)
        return Tally(self.weight * kept, self.total * kept, self.squares * kept, max(now_s, self.at_s))


# By tenant.
Evidence = Mapping[str, Tally]


def heard(evidence: Evidence, tenant: str, score: float, now_s: float) -> Evidence:
    """The evidence with one more score in 0..1."""
    before = evidence.get(tenant, Tally(at_s=now_s)).faded(now_s)
    after = Tally(before.weight + 1.0, before.total + score, before.squares + score * score, before.at_s)
    return {**evidence, tenant: after}


def quality(prior: float | None, evidence: Evidence, now_s: float) -> float | None:
    """The quality to believe, in 0..1; None while neither an operator nor enough scores tell it."""
    tallies = [tally for each in evidence.values() if (tally := each.faded(now_s)).weight > 0.0]
    if not tallies:
        return prior
    cap = influence_cap([tally.weight for tally in tallies])
    influence = [min(tally.weight, cap) for tally in tallies]
    total = sum(influence)
    mean = sum(w * t.total / t.weight for w, t in zip(influence, tallies, strict=True)) / total
    proven = _proven(tallies, mean)
    if prior is None:
        # Unknown until more is said than is not known.
        return min(mean, proven) if total >= PRIOR_WEIGHT else None
    blended = (PRIOR_WEIGHT * prior + total * mean) / (PRIOR_WEIGHT + total)
    return blended if blended <= prior else max(prior, min(blended, proven))


def influence_cap(weights: list[float]) -> float:
    """The weight at which one tenant has `TENANT_SHARE` of all influence, the prior's included."""
    ordered = sorted(weights, reverse=True)
    rest = PRIOR_WEIGHT + sum(ordered)
    for capped, largest in enumerate(ordered):
        # With so many tenants held at the cap, it is this share of them and of all others together.
        cap = TENANT_SHARE * rest / (1.0 - TENANT_SHARE * capped)
        if largest <= cap:
            return cap
        rest -= largest
    return TENANT_SHARE * rest / (1.0 - TENANT_SHARE * len(ordered))


def _proven(tallies: list[Tally], mean: float) -> float:
    """What the scores prove of their mean; 0 while they are too few."""
    scores = sum(tally.weight for tally in tallies)
    if scores < SCORES_TO_RAISE:
        return 0.0
    raw = sum(tally.total for tally in tallies) / scores
    variance = max(LEAST_VARIANCE, sum(tally.squares for tally in tallies) / scores - raw * raw)
    return max(0.0, mean - PROOF * sqrt(variance / scores))
