"""What an earlier process learned of a member goes on in the next: how fast it is, how long its answers are.

Health begins anew, and so does what was recent: engines start with the process, or were started meanwhile.
Quality is what is declared now, and what feedback makes of it. The rest fades while nobody listens.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

from loadwise.decision.beliefs import Belief
from loadwise.decision.facts import Policy
from loadwise.decision.outcome import drifted


def resumed(policy: Policy, fresh: Belief, kept: Belief, away_s: float) -> Belief:
    """`fresh`, a belief of this start, with what was `kept` of it `away_s` seconds ago.

    Speeds are seconds over work: where a member's cost, its device's size or its objectives are others now,
    that work cannot be compared, and only the lengths of answers go on.
    """
    if not _alike(fresh, kept):
        return fresh._replace(answer_tokens=kept.answer_tokens, answers=kept.answers)
    then_s = fresh.updated_s - away_s
    learned = fresh._replace(
        prior=kept.prior,
        output_fit=kept.output_fit,
        first_fit=kept.first_fit,
        answer_tokens=kept.answer_tokens,
        updated_s=then_s,
        stale_at_s=kept.stale_at_s + then_s - kept.updated_s,
        outcomes=kept.outcomes,
        weight=kept.weight,
        failures=kept.failures,
        output_line=kept.output_line,
        first_line=kept.first_line,
        latency_ms=kept.latency_ms,
        by_load=kept.by_load,
        answers=kept.answers,
    )
    return drifted(policy, learned, fresh.updated_s)


def sound(belief: Belief) -> bool:
    """Whether its figures can be calculated with: finite, counts and weights at least 0."""
    counts = (belief.outcomes, belief.weight, belief.failures, belief.answer_tokens, belief.answers.total)
    return all(isfinite(value) for value in _figures(belief)) and min(counts) >= 0 and belief.cost > 0.0


def _alike(fresh: Belief, kept: Belief) -> bool:
    return (
        fresh.objectives == kept.objectives
        and fresh.cost == kept.cost
        and fresh.prior.full_work == kept.prior.full_work
    )


def _figures(belief: Belief) -> Iterator[float]:
    prior = belief.prior
    yield from (prior.full_work, prior.output_idle_s, prior.output_full_s)
    yield from (prior.first_idle_s, prior.first_full_s)
    yield from (belief.updated_s, belief.weight, belief.failures, belief.answer_tokens, belief.cost)
    groups: tuple[tuple[Any, ...], ...] = (
        belief.output_line, belief.first_line, belief.output_fit, belief.first_fit, *belief.by_load,
    )  # fmt: skip
    for group in groups:
        yield from group
    yield 0.0 if belief.latency_ms is None else belief.latency_ms
