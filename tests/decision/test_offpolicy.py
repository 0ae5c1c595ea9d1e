"""Off-policy estimates on simulated logs whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from loadwise.decision.offpolicy import OffPolicy, Sample, evaluate

STRATA = ("low", "middle", "high")
# Chance of a good outcome by stratum and choice: the accurate member suffers under load.
GOOD = {
    ("low", "fast"): 0.70, ("low", "accurate"): 0.95,
    ("middle", "fast"): 0.65, ("middle", "accurate"): 0.75,
    ("high", "fast"): 0.60, ("high", "accurate"): 0.20,
}  # fmt: skip
Policy = Callable[[str], dict[str, float]]


def logging(stratum: str) -> dict[str, float]:
    share = {"low": 0.3, "middle": 0.5, "high": 0.8}[stratum]
    return {"fast": share, "accurate": 1.0 - share}


def target(stratum: str) -> dict[str, float]:
    share = {"low": 0.05, "middle": 0.4, "high": 0.95}[stratum]
    return {"fast": share, "accurate": 1.0 - share}


def fast_only(_: str) -> dict[str, float]:
    return {"fast": 1.0, "accurate": 0.0}


def accurate_only(_: str) -> dict[str, float]:
    return {"fast": 0.0, "accurate": 1.0}


def truth(policy: Policy) -> float:
    return sum(GOOD[s, name] * share for s in STRATA for name, share in policy(s).items()) / len(STRATA)


def log_of(random: Random, size: int, logged: Policy = logging, wanted: Policy = target) -> list[Sample]:
    samples = []
    for number in range(size):
        stratum = random.choice(STRATA)
        shares = logged(stratum)
        chosen = "fast" if random.random() < shares["fast"] else "accurate"
        reward = float(random.random() < GOOD[stratum, chosen])
        samples.append(Sample(reward, chosen, shares, wanted(stratum), stratum, number))
    return samples


@pytest.mark.parametrize("estimator", ["inverse_propensity", "doubly_robust"])
def test_intervals_cover_the_truth_as_often_as_they_say(estimator: str) -> None:
    random, known, covered = Random(7), truth(target), 0
    for _ in range(400):
        found = getattr(evaluate(log_of(random, 600)), estimator)
        covered += found.low <= known <= found.high
    assert 0.93 <= covered / 400 <= 0.975


def test_a_model_of_outcomes_makes_the_interval_narrower() -> None:
    random, narrower = Random(3), 0
    for _ in range(50):
        found = evaluate(log_of(random, 1000))
        assert found.doubly_robust is not None
        assert found.inverse_propensity is not None
        narrower += width(found.doubly_robust) < width(found.inverse_propensity)
    assert narrower >= 45


def width(estimate: object) -> float:
    return estimate.high - estimate.low  # type: ignore[attr-defined, no-any-return]


def test_the_logged_policy_itself_is_estimated_by_its_mean() -> None:
    samples = log_of(Random(1), 500, wanted=logging)
    found = evaluate(samples)
    assert found.effective_samples == pytest.approx(500)
    assert found.logged is not None
    assert found.inverse_propensity is not None
    assert found.inverse_propensity.value == pytest.approx(found.logged.value)


def test_without_overlap_there_is_no_estimate_and_it_says_why() -> None:
    found = evaluate(log_of(Random(1), 500, logged=fast_only, wanted=accurate_only))
    assert not estimates(found)
    assert found.overlap == 0.0
    assert "no chance" in found.missing[0]


def test_a_policy_that_few_samples_speak_for_is_not_estimated() -> None:
    def rarely(_: str) -> dict[str, float]:
        return {"fast": 0.99, "accurate": 0.01}

    found = evaluate(log_of(Random(1), 2000, logged=rarely, wanted=accurate_only))
    assert found.overlap == 1.0
    assert found.effective_samples < 100
    assert not estimates(found)
    assert "effective samples" in found.missing[0]


def test_samples_of_one_moment_count_as_one() -> None:
    samples = [
        sample._replace(cluster=number // 100) for number, sample in enumerate(log_of(Random(1), 1000))
    ]
    assert "10 stretches" in evaluate(samples).missing[0]


def test_dependent_samples_widen_the_interval() -> None:
    samples = log_of(Random(1), 2000)
    doubled = [sample for sample in samples for _ in range(4)]
    apart = [sample._replace(cluster=number) for number, sample in enumerate(doubled)]
    together, spread = evaluate(doubled).doubly_robust, evaluate(apart).doubly_robust
    assert width(together) > 1.8 * width(spread)


def test_nothing_is_said_without_samples() -> None:
    found = evaluate([])
    assert not estimates(found)
    assert found.missing


def estimates(found: OffPolicy) -> list[object]:
    return [each for each in (found.inverse_propensity, found.doubly_robust) if each is not None]
