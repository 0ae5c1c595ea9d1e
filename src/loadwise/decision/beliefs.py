"""What is believed of a member: how fast at which load, how reliable, how long its answers, how well it is.

Speed is kept as two lines, each a decayed least-squares fit over the work on the pool: seconds per
output token, and seconds to the first token per uncached prompt token. Work is the pool's requests in
flight, each weighing what its member costs, so that one number says how busy the shared device is.
Without fresh outcomes weights halve every `belief_half_life_s` and the lines return to their priors.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from loadwise.decision.facts import Member, Objectives
from loadwise.decision.lengths import LengthSketch

# What a first token costs beside its prompt, as if the prompt were this much longer.
FIRST_TOKEN_OVERHEAD_TOKENS: Final = 64.0
# Outcomes before a member counts as measured.
MEASURED_OUTCOMES: Final = 20


class Health(StrEnum):
    """Where a member stands between serving and being out."""

    HEALTHY = "healthy"
    OUT = "out"
    RAMPING = "ramping"


class Line(NamedTuple):
    """Decayed sums of a straight line y = a + b x through weighted points, with a prior worth `PRIOR_WEIGHT`."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, kept: float, weight: float, x: float, y: float) -> Line:
        """The line with its past scaled by `kept` (0..1) and one more point of `weight`."""
        wx = weight * x
        return Line(
            self.weight * kept + weight,
            self.x * kept + wx,
            self.y * kept + weight * y,
            self.xx * kept + wx * x,
            self.xy * kept + wx * y,
        )


class Fit(NamedTuple):
    """A line's value at no work, and its growth per unit of work; both at least 0."""

    base: float
    slope: float

    def at(self, work: float) -> float:
        """The value at `work`."""
        return self.base + self.slope * work


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What is assumed of a member before it is measured, and again when nothing was heard for long."""

    time_per_output_token_s: float
    first_token_s_per_token: float
    answer_tokens: float = 128.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """Everything learned of one member; `outcome.learn` makes the next one."""

    member_id: str
    prior: Prior
    # 0..1, None when unknown.
    quality: float | None = None
    # Price of one of its requests in units of work (1: the cheapest member's).
    cost: float = 1.0
    updated_s: float = 0.0
    # Outcomes ever heard, and the decayed weight of those that still count.
    outcomes: int = 0
    weight: float = 0.0
    # Decayed weight of failures: error rate is failures / weight.
    failures: float = 0.0
    # Decayed weight of answers within the objectives, of those whose times were seen.
    timed: float = 0.0
    within: float = 0.0
    output_line: Line = Line()
    first_line: Line = Line()
    # Fits of the lines, ready for use at each request.
    output_fit: Fit
    first_fit: Fit
    # Recent observed over predicted times (half-life 30 s): above 1 it is getting slower.
    trend: float = 1.0
    # Decayed mean of output tokens per answer, and of whole latencies in ms.
    answer_tokens: float
    latency_ms: float | None = None
    # (timed, within) at low, middle and high load of the pool.
    by_load: tuple[tuple[float, float], ...] = ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0))
    answers: LengthSketch = LengthSketch()
    health: Health = Health.HEALTHY
    # When it was taken out or its ramp began, and when it may be probed.
    health_since_s: float = 0.0
    probe_at_s: float = 0.0
    # Times in a row that it was taken out, consecutive failures, and successes since it was taken out.
    removals: int = 0
    failed_in_a_row: int = 0
    probes_passed: int = 0

    @property
    def error_rate(self) -> float:
        """The observed (decayed) fraction of failures; 0.0 before the first outcome."""
        return self.failures / self.weight if self.weight > 0 else 0.0

    @property
    def measured(self) -> bool:
        """Whether enough outcomes were heard to prefer it to its prior."""
        return self.outcomes >= MEASURED_OUTCOMES


def initial(member: Member, objectives: Objectives, now_s: float) -> Belief:
    """The belief of a member that nobody has measured: its prior, quality as declared."""
    cost = max(1e-6, member.relative_cost if member.relative_cost is not None else 1.0)
    prior = Prior(
        time_per_output_token_s=objectives.time_per_output_token_s * 0.25,
        first_token_s_per_token=objectives.time_to_first_token_s * 0.25 / 512.0,
    )
    return Belief(
        member_id=member.member_id,
        prior=prior,
        quality=member.quality,
        cost=cost,
        updated_s=now_s,
        output_fit=Fit(prior.time_per_output_token_s, 0.0),
        first_fit=Fit(prior.first_token_s_per_token, 0.0),
        answer_tokens=prior.answer_tokens,
    )
