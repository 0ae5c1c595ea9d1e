"""What a member can carry: requests per second within objectives, by what was learned of it.

Little's law: n requests in flight that are each held for h(n) seconds leave at n / h(n) per second. Both
lines of a belief are straight, so h(n) is, and the rate grows with n up to the first bound that n meets:
its places, the first token's objective, or the time per token's.
"""

from __future__ import annotations

from math import inf
from typing import Final, NamedTuple

from loadwise.decision.beliefs import BATCH_START, FIRST_TOKEN_OVERHEAD_TOKENS, Belief, Fit
from loadwise.decision.facts import Objectives

# Shares of the objectives that a member may reach when it carries all it can: means hide half of the answers.
FIRST_TOKEN_SHARE: Final = 0.5
OUTPUT_TOKEN_SHARE: Final = 0.85


class Capacity(NamedTuple):
    """Requests per second that a member carries alone on its device, and those in flight then."""

    per_s: float
    in_flight: float


def capacity_per_s(belief: Belief, objectives: Objectives, places: int | None, prompt_tokens: float) -> float:
    """Requests per second that the member carries alone on its device, `prompt_tokens` long in the mean.

    0 where a single request would miss its objectives; inf where nothing bounds it.
    """
    return capacity(belief, objectives, places, prompt_tokens).per_s


def capacity(belief: Belief, objectives: Objectives, places: int | None, prompt_tokens: float) -> Capacity:
    """What the member carries, and how many requests it then has in flight."""
    # Without the trend: what is slow for half a minute carries as much as ever after it.
    first = _scaled(belief.first_fit, prompt_tokens + FIRST_TOKEN_OVERHEAD_TOKENS)
    each = belief.output_fit
    most = min(
        inf if places is None else places,
        _work_at(first, FIRST_TOKEN_SHARE * objectives.time_to_first_token_s) / belief.cost - BATCH_START,
        _work_at(each, OUTPUT_TOKEN_SHARE * objectives.time_per_output_token_s) / belief.cost - BATCH_START,
    )
    if most < 1.0:
        return Capacity(0.0, 0.0)
    grown = first.slope + belief.answer_tokens * each.slope
    if most == inf:
        return Capacity(1.0 / (grown * belief.cost) if grown > 0.0 else inf, inf)
    work = (most + BATCH_START) * belief.cost
    held_s = first.at(work) + belief.answer_tokens * each.at(work)
    return Capacity(most / held_s if held_s > 0.0 else inf, most)


def busy_s(belief: Belief, places: int, prompt_tokens: float) -> float:
    """Seconds of a full device that one request takes: the member's cost, measured."""
    work = (places + BATCH_START) * belief.cost
    # Unpacked: this runs for every member of a full device at every request.
    base, slope = belief.first_fit
    first_s = (prompt_tokens + FIRST_TOKEN_OVERHEAD_TOKENS) * (base + slope * work)
    base, slope = belief.output_fit
    return (first_s + belief.answer_tokens * (base + slope * work)) / places


def _scaled(fit: Fit, by: float) -> Fit:
    return Fit(fit.base * by, fit.slope * by)


def _work_at(fit: Fit, seconds: float) -> float:
    """The work at which the line reaches `seconds`; below 0 where it lies above it from the start."""
    if fit.base > seconds:
        return -1.0
    return (seconds - fit.base) / fit.slope if fit.slope > 0.0 else inf
