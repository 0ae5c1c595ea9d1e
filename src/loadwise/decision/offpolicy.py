"""What another policy would have earned, estimated from decisions that were drawn with known propensities.

Two estimators: self-normalised inverse propensity (Swaminathan and Joachims 2015) weighs each outcome by how
much likelier the other policy would have made that choice; doubly robust (Dudik, Langford and Li 2011) lets a
model of outcomes carry most of the estimate and weighs only what the model gets wrong. Intervals are of 95 %,
from the estimators' influence functions summed per cluster, because neighbours in time share a queue.

Nothing is estimated where the other policy would choose what was never possible, or where few outcomes carry
all the weight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final, NamedTuple

# What the data must offer.
EFFECTIVE_NEEDED: Final = 100.0
OVERLAP_NEEDED: Final = 0.95
CLUSTERS_NEEDED: Final = 20
# Outcomes by which a cell of the outcome model leans on its choice's mean, and that on the mean of all.
LEAN: Final = 5.0
_Z: Final = 1.959964


class Sample(NamedTuple):
    """One decision and what came of it; propensities are those of every candidate and add up to 1."""

    reward: float
    chosen: str
    logged: Mapping[str, float]
    target: Mapping[str, float]
    # What is known of the circumstances, for the outcome model.
    stratum: str = ""
    # Samples of one cluster may depend on one another.
    cluster: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean reward with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OffPolicy:
    """Both estimates of the other policy beside what was logged; None where the data cannot support them."""

    samples: int
    # Samples that equal weights would need for the same variance (Kish 1965).
    effective_samples: float
    # Share of the other policy's choices that were possible when logged.
    overlap: float
    largest_weight: float
    # Why there is no estimate; empty where there is one.
    missing: tuple[str, ...]
    logged: Estimate | None
    inverse_propensity: Estimate | None
    doubly_robust: Estimate | None


def evaluate(samples: Sequence[Sample]) -> OffPolicy:
    """What the samples say of the target policy."""
    weights = [_weight(sample) for sample in samples]
    squares = sum(weight * weight for weight in weights)
    effective = sum(weights) ** 2 / squares if squares > 0.0 else 0.0
    overlap = _overlap(samples)
    clusters = len({sample.cluster for sample in samples})
    missing = _missing(len(samples), effective, overlap, clusters)
    supported = not missing
    return OffPolicy(
        samples=len(samples),
        effective_samples=effective,
        overlap=overlap,
        largest_weight=max(weights, default=0.0),
        missing=missing,
        logged=_mean(samples) if clusters >= CLUSTERS_NEEDED else None,
        inverse_propensity=_inverse_propensity(samples, weights) if supported else None,
        doubly_robust=_doubly_robust(samples, weights) if supported else None,
    )


def _missing(samples: int, effective: float, overlap: float, clusters: int) -> tuple[str, ...]:
    found = []
    if samples == 0:
        return ("no decision was free to choose and has an outcome",)
    if overlap < OVERLAP_NEEDED:
        found.append(
            f"{1.0 - overlap:.0%} of its choices had no chance when logged (at most "
            f"{1.0 - OVERLAP_NEEDED:.0%} may): let the logged policy explore, for example by weighted_voting"
        )
    if effective < EFFECTIVE_NEEDED:
        found.append(
            f"its choices rest on {effective:.0f} effective samples of {samples} ({EFFECTIVE_NEEDED:.0f} "
            "are needed): log for longer, or try a policy nearer to the logged one"
        )
    if clusters < CLUSTERS_NEEDED:
        found.append(f"the log covers {clusters} stretches of time ({CLUSTERS_NEEDED} are needed)")
    return tuple(found)


def _weight(sample: Sample) -> float:
    logged = sample.logged.get(sample.chosen, 0.0)
    return sample.target.get(sample.chosen, 0.0) / logged if logged > 0.0 else 0.0


def _overlap(samples: Sequence[Sample]) -> float:
    """Mean share of the target's mass on choices that had a chance."""
    possible = sum(
        share for s in samples for name, share in s.target.items() if s.logged.get(name, 0.0) > 0.0
    )
    return possible / len(samples) if samples else 0.0


def _mean(samples: Sequence[Sample]) -> Estimate:
    value = sum(sample.reward for sample in samples) / len(samples)
    return _interval(value, samples, [sample.reward - value for sample in samples])


def _inverse_propensity(samples: Sequence[Sample], weights: Sequence[float]) -> Estimate:
    total = sum(weights)
    value = sum(w * s.reward for w, s in zip(weights, samples, strict=True)) / total
    scale = len(samples) / total
    return _interval(
        value, samples, [w * (s.reward - value) * scale for w, s in zip(weights, samples, strict=True)]
    )


def _doubly_robust(samples: Sequence[Sample], weights: Sequence[float]) -> Estimate:
    # Each half is judged by the model of the other half, so that no outcome explains itself.
    models = [_model([s for s in samples if s.cluster % 2 != half]) for half in (0, 1)]
    scores = []
    for weight, sample in zip(weights, samples, strict=True):
        expected = models[sample.cluster % 2]
        planned = sum(share * expected(sample.stratum, name) for name, share in sample.target.items())
        scores.append(planned + weight * (sample.reward - expected(sample.stratum, sample.chosen)))
    value = sum(scores) / len(scores)
    return _interval(value, samples, [score - value for score in scores])


def _model(samples: Sequence[Sample]) -> Callable[[str, str], float]:
    """Expected reward by stratum and choice: cell means that lean on the choice's, and on the whole mean."""
    everything = sum(s.reward for s in samples) / len(samples) if samples else 0.0
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    choices: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        cells[sample.stratum, sample.chosen].append(sample.reward)
        choices[sample.chosen].append(sample.reward)
    of_choice = {name: _leaning(rewards, everything) for name, rewards in choices.items()}
    of_cell = {
        (stratum, name): _leaning(rewards, of_choice[name]) for (stratum, name), rewards in cells.items()
    }

    def expected(stratum: str, name: str) -> float:
        found = of_cell.get((stratum, name))
        return of_choice.get(name, everything) if found is None else found

    return expected


def _leaning(rewards: Sequence[float], prior: float) -> float:
    return (sum(rewards) + LEAN * prior) / (len(rewards) + LEAN)


def _interval(value: float, samples: Sequence[Sample], influence: Sequence[float]) -> Estimate:
    sums: dict[int, float] = defaultdict(float)
    for sample, each in zip(samples, influence, strict=True):
        sums[sample.cluster] += each
    clusters = len(sums)
    # The usual correction for few clusters.
    spread = sum(each * each for each in sums.values()) * clusters / max(1, clusters - 1)
    reach = _quantile(clusters - 1) * sqrt(spread) / len(samples)
    return Estimate(value=value, low=value - reach, high=value + reach)


def _quantile(degrees: int) -> float:
    """Student's 97.5 % quantile, by the first terms of its expansion around the normal one."""
    return _Z + (_Z**3 + _Z) / (4.0 * degrees) if degrees > 0 else _Z
