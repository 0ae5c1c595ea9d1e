"""7 learn: how a request ended becomes a new belief; beliefs become removals and returns.

- An abandoned request says nothing of a model; a 4xx other than 429 is the client's doing.
- Speed is compared like with like: per output token and per uncached prompt token, over the work on the
  pool at dispatch. A whole latency without token counts counts a fifth. Who had to wait for a place
  teaches how long waiting takes, and nothing of how fast prompts are read.
- Answers that are no generated text (embeddings, audio, images) tell of faults, not of speed.
- A refusal for lack of room (429) is an error but no fault: overload never removes a member.
- A member that hangs teaches by its silence (`silence.mute`): such answers end only with their timeout.
- A faulty or silent member goes out, is probed after a while that doubles, and returns on a ramp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import exp, inf, log
from typing import Final

from loadwise.decision.beliefs import (
    BATCH_START,
    FIRST_TOKEN_OVERHEAD_TOKENS,
    MEASURED_OUTCOMES,
    Belief,
    Fit,
    Health,
)
from loadwise.decision.facts import Ending, Objectives, Outcome, Policy
from loadwise.decision.fault import Fault, fault_of
from loadwise.decision.lengths import LengthSketch
from loadwise.decision.quick import new
from loadwise.decision.silence import Silence, mute

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
FAULTS_IN_A_ROW: Final = 5
FAULT_FRACTION: Final = 0.5
FAULTS_NEEDED: Final = 5.0
PROBE_AFTER_S: Final = 5.0
PROBE_AFTER_MOST_S: Final = 120.0
PROBES_NEEDED: Final = 3
RAMP_S: Final = 30.0
_LN2: Final = log(2.0)
# Named once: on its enumeration each look-up costs as much as the step around it.
_SUCCEEDED: Final = Ending.SUCCEEDED
# Failures that leave a request outside its objectives.
_OURS: Final = frozenset({Fault.MEMBER, Fault.OVERLOAD})


class HealthReason(StrEnum):
    """Why a member's health changed."""

    FAULTS_IN_A_ROW = "faults_in_a_row"
    FAULT_FRACTION = "fault_fraction"
    SILENT = "silent"
    RAMP_FAILED = "ramp_failed"
    PROBES_PASSED = "probes_passed"
    RAMP_COMPLETE = "ramp_complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthChange:
    """A member leaves, begins its ramp or is back; `belief` is the one to keep."""

    member_id: str
    health: Health
    reason: HealthReason
    belief: Belief


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
    prior = belief.prior
    output = belief.output_line.add(kept, 0.0, 0.0, 0.0)
    first = belief.first_line.add(kept, 0.0, 0.0, 0.0)
    recent = exp(-_LN2 * elapsed / TREND_HALF_LIFE_S)
    return belief._replace(
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


def review(
    policy: Policy, beliefs: Mapping[str, Belief], now_s: float, silences: Sequence[Silence] = ()
) -> tuple[HealthChange, ...]:
    """Members of one route to take out or bring back; at most half are out at once, never the last."""
    changes = [change for belief in beliefs.values() if (change := _returning(belief, now_s)) is not None]
    out = sum(belief.health is Health.OUT for belief in beliefs.values())
    out -= sum(change.health is Health.RAMPING for change in changes)
    room = len(beliefs) // 2 - out
    silent = mute(policy, beliefs, silences)
    suspects = [(beliefs[name], HealthReason.SILENT) for name in silent]
    suspects += [(b, why) for n, b in beliefs.items() if n not in silent and (why := _faulty(b)) is not None]
    # Who fails lets its clients ask elsewhere; who is silent keeps them waiting.
    suspects.sort(
        key=lambda pair: (pair[1] is not HealthReason.SILENT, -_fault_fraction(pair[0]), pair[0][0])
    )
    changes += [_removed(belief, why, now_s) for belief, why in suspects[: max(0, room)]]
    return tuple(changes)


def ramp(belief: Belief, now_s: float) -> float:
    """The share of its usual traffic that a member takes: 1 healthy, 0 out, 0.1 to 1 on the ramp."""
    if belief.health is Health.HEALTHY:
        return 1.0
    if belief.health is Health.OUT:
        return 0.0
    return min(1.0, 0.1 + 0.9 * max(0.0, now_s - belief.health_since_s) / RAMP_S)


def _failed(policy: Policy, belief: Belief, outcome: Outcome, elapsed: float, kept: float) -> Belief:
    recent = exp(-_LN2 * elapsed / TREND_HALF_LIFE_S)
    fault = 1.0 if fault_of(outcome) is Fault.MEMBER else 0.0
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


def _fault_fraction(belief: Belief) -> float:
    return belief.recent_faults / belief.recent if belief.recent > 0 else 0.0


def _faulty(belief: Belief) -> HealthReason | None:
    """Why a serving member should leave, if it should."""
    if belief.health is Health.OUT:
        return None
    if belief.health is Health.RAMPING and belief.faults_in_a_row >= 2:
        return HealthReason.RAMP_FAILED
    if belief.faults_in_a_row >= FAULTS_IN_A_ROW:
        return HealthReason.FAULTS_IN_A_ROW
    many = belief.recent_faults >= FAULTS_NEEDED and _fault_fraction(belief) >= FAULT_FRACTION
    return HealthReason.FAULT_FRACTION if many else None


def _removed(belief: Belief, reason: HealthReason, now_s: float) -> HealthChange:
    belief = belief._replace(
        health=Health.OUT,
        health_since_s=now_s,
        probe_at_s=now_s + probe_after_s(belief.removals),
        removals=belief.removals + 1,
        passed=0,
    )
    return HealthChange(member_id=belief.member_id, health=Health.OUT, reason=reason, belief=belief)


def _returning(belief: Belief, now_s: float) -> HealthChange | None:
    if belief.health is Health.OUT and belief.passed >= PROBES_NEEDED:
        health, reason, removals = Health.RAMPING, HealthReason.PROBES_PASSED, belief.removals
    elif belief.health is Health.RAMPING and ramp(belief, now_s) >= 1.0 and belief.faults_in_a_row == 0:
        health, reason, removals = Health.HEALTHY, HealthReason.RAMP_COMPLETE, 0
    else:
        return None
    back = belief._replace(
        health=health,
        health_since_s=now_s,
        removals=removals,
        passed=0,
        faults_in_a_row=0,
        recent=0.0,
        recent_faults=0.0,
        recent_misses=0.0,
    )
    return HealthChange(member_id=belief.member_id, health=health, reason=reason, belief=back)


def probe_after_s(removals: int) -> float:
    """Seconds until a member that is out may be probed: doubling with each removal, to two minutes."""
    return min(PROBE_AFTER_MOST_S, PROBE_AFTER_S * 2.0 ** min(removals, 10))
