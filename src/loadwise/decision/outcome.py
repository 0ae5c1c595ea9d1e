"""7 learn: how a request ended becomes a new belief; what follows for members and replicas is `health`'s.

- An abandoned request says nothing of a model; a 4xx other than 429 is the client's doing.
- Speed is compared like with like: per output token and per uncached prompt token, over the work on the
  pool at dispatch. A whole latency without token counts counts a fifth. Who had to wait for a place
  teaches how long waiting takes, and nothing of how fast prompts are read.
- Answers that are no generated text (embeddings, audio, images) tell of faults, not of speed.
- A refusal for lack of room (429) is an error but no fault: overload never removes a member.
- Who hangs teaches by silence (`silence.mute`): such answers end only with their timeout.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp, inf, log
from typing import Final

from loadwise.decision import replicas
from loadwise.decision.beliefs import (
    BATCH_START,
    FIRST_TOKEN_OVERHEAD_TOKENS,
    MEASURED_OUTCOMES,
    Belief,
    Fit,
    Health,
)
from loadwise.decision.experience import settled
from loadwise.decision.facts import Ending, Objectives, Outcome, Policy
from loadwise.decision.fault import Fault, fault_of
from loadwise.decision.lengths import LengthSketch
from loadwise.decision.quick import new
from loadwise.decision.rotation import probe_after_s

TREND_HALF_LIFE_S: Final = 30.0
# How far one outcome moves the trend.
TREND_STEP: Final = 0.1
# Weight of a whole latency of unknown length, and of a time per token that includes the first.
UNKNOWN_LENGTH_WEIGHT: Final = 0.2
UNKNOWN_FIRST_TOKEN_WEIGHT: Final = 0.5
# Weight of an answer made while other engines ran on the device: how they share it, work alone does not tell.
BESIDE_WEIGHT: Final = 0.2
# Decayed outcomes below which a member is measured again.
STALE_WEIGHT: Final = 3.0
_LN2: Final = log(2.0)
# Named once: on its enumeration each look-up costs as much as the step around it.
_SUCCEEDED: Final = Ending.SUCCEEDED
# Failures that leave a request outside its objectives.
_OURS: Final = frozenset({Fault.MEMBER, Fault.OVERLOAD})


def learn(policy: Policy, belief: Belief, outcome: Outcome) -> Belief:
    """The belief after one more outcome; the very same object where the outcome teaches nothing."""
    succeeded = outcome.ending is _SUCCEEDED
    if not succeeded and (outcome.ending is Ending.ABANDONED or fault_of(outcome) is Fault.CLIENT):
        return belief
    if not outcome.generated:
        outcome = replace(outcome, total_s=None, time_to_first_token_s=None, output_tokens=None)
    elapsed = outcome.finished_s - belief.updated_s
    if elapsed < 0.0:
        elapsed = 0.0
    kept = exp(-_LN2 * elapsed / policy.belief_half_life_s)
    if succeeded:
        return _succeeded(policy, belief, outcome, elapsed, kept)
    return _failed(policy, belief, outcome, elapsed, kept)


def within_objectives(objectives: Objectives, outcome: Outcome) -> bool | None:
    """Whether an answer met both objectives; a failure did not, and None where times are not known."""
    if outcome.ending is not _SUCCEEDED:
        return False if fault_of(outcome) in _OURS else None
    first, total, tokens = outcome.time_to_first_token_s, outcome.total_s, outcome.output_tokens
    if total is None or tokens is None or not outcome.generated:
        return None
    if first is None:
        # Nobody saw the first token: the whole must fit what both objectives allow together.
        allowed = objectives.time_to_first_token_s + objectives.time_per_output_token_s * max(0, tokens - 1)
        return total <= allowed
    if first > objectives.time_to_first_token_s:
        return False
    return tokens <= 1 or (total - first) / (tokens - 1) <= objectives.time_per_output_token_s


def load_level(policy: Policy, load_score: float) -> int:
    """0, 1 or 2: low, middle or high load."""
    if load_score >= policy.load_threshold_high:
        return 2
    return 0 if load_score < policy.load_threshold_low else 1


def drifted(policy: Policy, belief: Belief, now_s: float) -> Belief:
    """The belief at `now_s` without news: weights halve every half-life and fits near their priors."""
    elapsed = now_s - belief.updated_s
    if elapsed <= 0.0:
        return belief
    kept = exp(-_LN2 * elapsed / policy.belief_half_life_s)
    prior = settled(belief, kept, elapsed)
    output = belief.output_line.add(kept, 0.0, 0.0, 0.0)
    first = belief.first_line.add(kept, 0.0, 0.0, 0.0)
    recent = exp(-_LN2 * elapsed / TREND_HALF_LIFE_S)
    return belief._replace(
        prior=prior,
        updated_s=now_s,
        weight=belief.weight * kept,
        failures=belief.failures * kept,
        recent=belief.recent * recent,
        recent_faults=belief.recent_faults * recent,
        recent_misses=belief.recent_misses * recent,
        wait_trend=1.0 + (belief.wait_trend - 1.0) * recent,
        output_line=output,
        first_line=first,
        output_fit=output.fit(prior.output_idle_s, prior.full_work, prior.output_full_s),
        first_fit=first.fit(prior.first_idle_s, prior.full_work, prior.first_full_s),
        trend=1.0 + (belief.trend - 1.0) * recent,
        by_load=tuple((timed * kept, within * kept) for timed, within in belief.by_load),
    )


def _failed(policy: Policy, belief: Belief, outcome: Outcome, elapsed: float, kept: float) -> Belief:
    recent = exp(-_LN2 * elapsed / TREND_HALF_LIFE_S)
    blamed = fault_of(outcome) is Fault.MEMBER
    failed_s = max(belief.failed_s, outcome.finished_s) if blamed else belief.failed_s
    standings = replicas.heard(belief.replicas, outcome.replica_id, outcome.finished_s, fault=blamed)
    if replicas.is_out(belief.replicas, outcome.replica_id):
        # The others serve: what it fails at, and what hung there, is no longer the member's.
        return belief._replace(replicas=standings, failed_s=failed_s)
    fault = 1.0 if blamed else 0.0
    out = belief.health is Health.OUT
    return belief._replace(
        updated_s=max(belief.updated_s, outcome.finished_s),
        stale_at_s=_stale_at_s(policy, outcome, belief.weight * kept + 1.0),
        outcomes=belief.outcomes + 1,
        weight=belief.weight * kept + 1.0,
        failures=belief.failures * kept + 1.0,
        recent=belief.recent * recent + 1.0,
        recent_faults=belief.recent_faults * recent + fault,
        recent_misses=belief.recent_misses * recent,
        output_line=belief.output_line.add(kept, 0.0, 0.0, 0.0),
        first_line=belief.first_line.add(kept, 0.0, 0.0, 0.0),
        by_load=_by_load(policy, belief, outcome, kept, within=False),
        faults_in_a_row=belief.faults_in_a_row + int(fault),
        passed=0 if fault else belief.passed,
        probe_at_s=outcome.finished_s + probe_after_s(belief.removals)
        if out and fault
        else belief.probe_at_s,
        replicas=standings,
        failed_s=failed_s,
    )


def _succeeded(policy: Policy, belief: Belief, outcome: Outcome, elapsed: float, kept: float) -> Belief:
    recent = exp(-_LN2 * elapsed / TREND_HALF_LIFE_S)
    prior, work = belief.prior, _work(belief, outcome)
    each, each_weight = _per_output_token(belief, outcome)
    first, first_weight = _per_prompt_token(outcome)
    if outcome.wait_s > 0.0:
        first_weight = 0.0
    if outcome.beside > 0.0:
        each_weight, first_weight = each_weight * BESIDE_WEIGHT, first_weight * BESIDE_WEIGHT
    output_line = belief.output_line.add(kept, each_weight, work, each)
    first_line = belief.first_line.add(kept, first_weight, work, first)
    weight = belief.weight * kept
    within = within_objectives(belief.objectives, outcome)
    # In the order of their declaration.
    return new(Belief, (
        belief.member_id, prior, belief.objectives,
        output_line.fit(prior.output_idle_s, prior.full_work, prior.output_full_s),
        first_line.fit(prior.first_idle_s, prior.full_work, prior.first_full_s),
        _answer_tokens(belief, outcome, weight), belief.quality, belief.cost,
        outcome.finished_s if elapsed > 0.0 else belief.updated_s, _stale_at_s(policy, outcome, weight + 1.0),
        belief.outcomes + 1, weight + 1.0, belief.failures * kept,
        belief.recent * recent + 1.0, belief.recent_faults * recent,
        belief.recent_misses * recent + (within is False),
        output_line, first_line,
        _trend(belief, recent, work, (each, each_weight), (first, first_weight)),
        _wait_trend(belief, recent, outcome, work),
        _latency_ms(belief, outcome), _by_load(policy, belief, outcome, kept, within=within),
        _answers(belief, outcome), belief.health, belief.health_since_s, belief.probe_at_s, belief.removals,
        0, belief.passed + 1,
        replicas.heard(belief.replicas, outcome.replica_id, outcome.finished_s, fault=False),
        belief.failed_s,
    ))  # fmt: skip


def _answer_tokens(belief: Belief, outcome: Outcome, weight: float) -> float:
    length, tokens = belief.answer_tokens, outcome.output_tokens
    counted = weight + 4.0
    return length if tokens is None else length + (tokens - length) / (counted if counted < 50.0 else 50.0)


def _answers(belief: Belief, outcome: Outcome) -> LengthSketch:
    tokens = outcome.output_tokens
    ended = outcome.finish_reason == "stop" and tokens is not None and tokens > 0
    return belief.answers.add(tokens) if ended and tokens is not None else belief.answers


def _latency_ms(belief: Belief, outcome: Outcome) -> float | None:
    if outcome.total_s is None:
        return belief.latency_ms
    before, now = belief.latency_ms, outcome.total_s * 1000.0
    return now if before is None else before + (now - before) * 0.05


def _work(belief: Belief, outcome: Outcome) -> float:
    return (
        outcome.work
        if outcome.work is not None
        else (max(1, outcome.concurrency) + BATCH_START) * belief.cost
    )


def _stale_at_s(policy: Policy, outcome: Outcome, weight: float) -> float:
    """When the weight will have faded to `STALE_WEIGHT`."""
    return outcome.finished_s + policy.belief_half_life_s * log(weight / STALE_WEIGHT) / _LN2


def _per_output_token(belief: Belief, outcome: Outcome) -> tuple[float, float]:
    """Seconds per output token, and how much that counts (0: it could not be told)."""
    total, first, tokens = outcome.total_s, outcome.time_to_first_token_s, outcome.output_tokens
    if total is None or not 0.0 <= total < inf:
        return 0.0, 0.0
    if tokens is None:
        return total / max(1.0, belief.prior.answer_tokens), UNKNOWN_LENGTH_WEIGHT
    if first is None or not 0.0 <= first < inf:
        return (total / tokens, UNKNOWN_FIRST_TOKEN_WEIGHT) if tokens > 0 else (0.0, 0.0)
    if tokens <= 1:
        return 0.0, 0.0
    return (total - first) / (tokens - 1) if total > first else 0.0, 1.0


def _per_prompt_token(outcome: Outcome) -> tuple[float, float]:
    """Seconds to the first token per uncached prompt token, and how much that counts."""
    first, prompt = outcome.time_to_first_token_s, outcome.prompt_tokens
    if first is None or prompt is None or not 0.0 <= first < inf:
        return 0.0, 0.0
    uncached = prompt - outcome.cached_tokens
    return first / ((uncached if uncached > 0 else 0) + FIRST_TOKEN_OVERHEAD_TOKENS), 1.0


def _trend(
    belief: Belief,
    recent: float,
    work: float,
    output: tuple[float, float],
    first: tuple[float, float],
) -> float:
    """Observed over predicted, moved a step by this outcome and drawn back to 1 by time."""
    trend = 1.0 + (belief.trend - 1.0) * recent
    weight = output[1] if output[1] > first[1] else first[1]
    if weight == 0.0 or belief.outcomes < MEASURED_OUTCOMES:
        return trend
    each, early = _ratio(belief.output_fit, work, output[0]), _ratio(belief.first_fit, work, first[0])
    return trend + TREND_STEP * weight * (_bounded(each if each > early else early) - trend)


def _wait_trend(belief: Belief, recent: float, outcome: Outcome, work: float) -> float:
    """The observed wait for a place over the one expected, followed like the trend."""
    trend, first_s = 1.0 + (belief.wait_trend - 1.0) * recent, outcome.time_to_first_token_s
    if outcome.wait_s <= 0.0 or first_s is None or outcome.prompt_tokens is None:
        return trend
    uncached = max(0, outcome.prompt_tokens - outcome.cached_tokens)
    read_s = (uncached + FIRST_TOKEN_OVERHEAD_TOKENS) * belief.first_fit.at(work)
    ratio = max(0.0, first_s - read_s) / outcome.wait_s * belief.wait_trend
    return trend + TREND_STEP * (_bounded(ratio) - trend)


def _bounded(ratio: float) -> float:
    """What one outcome may say of a trend: no more than four times as slow, or as fast."""
    return 4.0 if ratio > 4.0 else 0.25 if ratio < 0.25 else ratio


def _ratio(fit: Fit, work: float, observed: float) -> float:
    base, slope = fit
    expected = base + slope * work
    return observed / expected if expected > 0.0 else 1.0


def _by_load(
    policy: Policy, belief: Belief, outcome: Outcome, kept: float, *, within: bool | None
) -> tuple[tuple[float, float], ...]:
    levels = [(timed * kept, met * kept) for timed, met in belief.by_load]
    if within is not None:
        at = load_level(policy, outcome.load_score) if outcome.load_score is not None else 1
        timed, met = levels[at]
        levels[at] = (timed + 1.0, met + within)
    return tuple(levels)
