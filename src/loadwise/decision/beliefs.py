"""What is believed of a member: how fast at which load, how reliable, how long its answers, how well it is.

Speed is kept as two lines, each a decayed least-squares fit over the work on the pool: seconds per
output token, and seconds to the first token per uncached prompt token. Work is the pool's requests in
flight, each weighing what its member costs, and `BATCH_START` more for each member that runs, so that one
number says how busy the shared device is.
Without fresh outcomes weights halve every `belief_half_life_s` and the lines return to their priors, in
which long experience has settled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf, sqrt
from typing import Final, NamedTuple

from loadwise.decision.facts import Member, Objectives, Route
from loadwise.decision.lengths import LengthSketch
from loadwise.decision.quick import new

# What a first token costs beside its prompt, as if the prompt were this much longer.
FIRST_TOKEN_OVERHEAD_TOKENS: Final = 64.0
# Weight of a prior's far point; one outcome has 1.
FAR_WEIGHT: Final = 0.02
# How far points tell of a slope, in roots of their summed squared distances: as sure as four of them.
SURE: Final = 0.5
# Outcomes before a member counts as measured.
MEASURED_OUTCOMES: Final = 20
# What running at all costs a member's batch, in requests: weights are read once for the whole batch.
BATCH_START: Final = 6.0
# The shares of the objectives that a member is assumed to take on an idle device, and on a full one.
PRIOR_IDLE: Final = 0.1
PRIOR_FULL: Final = 0.6
# Places of a replica that does not say.
UNKNOWN_PLACES: Final = 8


class Health(StrEnum):
    """Where a member stands between serving and being out."""

    HEALTHY = "healthy"
    OUT = "out"
    RAMPING = "ramping"


class Standing(NamedTuple):
    """One of several replicas of a member: its health since when, its next probe, and what led there."""

    health: Health = Health.HEALTHY
    health_since_s: float = 0.0
    probe_at_s: float = 0.0
    # As for members: removals without a full return, faults in a row, successes since its health changed.
    removals: int = 0
    faults_in_a_row: int = 0
    passed: int = 0


WELL: Final = Standing()
# By replica id.
ByReplica = Mapping[str, Standing]
NO_REPLICAS: Final[ByReplica] = {}


class Fit(NamedTuple):
    """A line's value at no work, and its growth per unit of work; both at least 0."""

    base: float
    slope: float

    def at(self, work: float) -> float:
        """The value at `work`."""
        return self.base + self.slope * work


class Line(NamedTuple):
    """Decayed sums of weighted points (x, y) that a straight line is fitted through."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, kept: float, weight: float, x: float, y: float) -> Line:
        """The line with its past scaled by `kept` (0..1) and one more point of `weight`."""
        weights, xs, ys, xxs, xys = self
        wx = weight * x
        return new(Line, (
            weights * kept + weight, xs * kept + wx, ys * kept + weight * y,
            xxs * kept + wx * x, xys * kept + wx * y,
        ))  # fmt: skip

    def told(self, start: float, work: float, less: float) -> tuple[float, float]:
        """What the points alone tell of two amounts of work, no further from their middle than they do.

        `start` without any. So far a line through them is as sure as a value from a few of them: points that
        lie close together tell of no slope.
        """
        weight, xs, ys, xxs, xys = self
        if weight <= 0.0:
            return start, start
        value, spread = ys / weight, xxs - xs * xs / weight
        slope = (xys - xs * ys / weight) / spread if spread > 1e-9 * xxs else 0.0
        if slope <= 0.0:
            return value, value
        middle, reach = xs / weight, SURE * sqrt(spread)
        return _within(value, slope, work - middle, reach), _within(value, slope, less - middle, reach)

    def fit(self, start: float, end_x: float, end: float) -> Fit:
        """The line through these points and the prior's two: (0, `start`) and, lightly, (`end_x`, `end`)."""
        weight, x, y, xx, xy = self
        # The far point has a long lever: a small weight is enough where nothing else tells the slope.
        far_x = FAR_WEIGHT * end_x
        weight += 1.0 + FAR_WEIGHT
        x, y = x + far_x, y + start + FAR_WEIGHT * end
        xx, xy = xx + far_x * end_x, xy + far_x * end
        slope = (weight * xy - x * y) / (weight * xx - x * x)
        base = (y - slope * x) / weight
        if slope < 0.0:
            return new(Fit, (y / weight, 0.0))
        return new(Fit, (base, slope) if base > 0.0 else (0.0, xy / xx))


def _within(value: float, slope: float, off: float, reach: float) -> float:
    """The line's value `off` its middle, no further than `reach`; at least 0."""
    if off > reach:
        off = reach
    elif off < -reach:
        off = -reach
    value += slope * off
    return value if value > 0.0 else 0.0


NO_LINE: Final = Line()
NO_ANSWERS: Final = LengthSketch()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What is assumed of a member before it is measured, and again when nothing was heard for long.

    An idle member takes a tenth of the objectives; with all its places taken, six tenths. What it was seen to
    take settles here as it fades (`experience.settled`).
    """

    # Work at which all places are taken.
    full_work: float
    output_idle_s: float
    output_full_s: float
    # Per uncached prompt token (and `FIRST_TOKEN_OVERHEAD_TOKENS` more).
    first_idle_s: float
    first_full_s: float
    answer_tokens: float = 128.0


class Belief(NamedTuple):
    """Everything learned of one member; `outcome.learn` makes the next one. A tuple, for it is made often."""

    member_id: str
    prior: Prior
    # A request is within its objectives when both its times are.
    objectives: Objectives
    # Fits of the lines, ready for use at each request: seconds over work.
    output_fit: Fit
    first_fit: Fit
    # Decayed mean of output tokens per answer.
    answer_tokens: float
    # 0..1, None when unknown.
    quality: float | None = None
    # What one of its requests weighs in `work` (1: the cheapest member's).
    cost: float = 1.0
    updated_s: float = 0.0
    # From then on it counts as not measured lately.
    stale_at_s: float = -inf
    # Outcomes ever heard, the decayed weight of those that still count, and of failures among them.
    outcomes: int = 0
    weight: float = 0.0
    failures: float = 0.0
    # The same within the last half minute or so; faults are failures that are not refusals (429), misses
    # are answers that came outside the objectives.
    recent: float = 0.0
    recent_faults: float = 0.0
    recent_misses: float = 0.0
    output_line: Line = NO_LINE
    first_line: Line = NO_LINE
    # Recent observed over predicted times: above 1 it is getting slower.
    trend: float = 1.0
    # The same of waits for a place.
    wait_trend: float = 1.0
    # Decayed mean of whole latencies in ms; None before the first.
    latency_ms: float | None = None
    # Decayed (answers whose times were seen, those within objectives) at low, middle and high load.
    by_load: tuple[tuple[float, float], ...] = ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0))
    # Lengths of answers that ended by themselves.
    answers: LengthSketch = NO_ANSWERS
    health: Health = Health.HEALTHY
    # When its health last changed, and when it may be probed while it is out.
    health_since_s: float = 0.0
    probe_at_s: float = 0.0
    # Removals without a full return between them, faults in a row, and successes since its health changed.
    removals: int = 0
    faults_in_a_row: int = 0
    passed: int = 0
    # By replica id where there are several; empty where the only one is the member.
    replicas: ByReplica = NO_REPLICAS
    # When one of its replicas last failed.
    failed_s: float = -inf

    @property
    def error_rate(self) -> float:
        """The observed (decayed) fraction of failures; 0.0 before the first outcome."""
        return self.failures / self.weight if self.weight > 0 else 0.0

    @property
    def measured(self) -> bool:
        """Whether enough outcomes were heard to trust it with more than a small share."""
        return self.outcomes >= MEASURED_OUTCOMES

    @property
    def within_fraction(self) -> float | None:
        """The decayed share of its answers within objectives; None before the first."""
        timed = sum(seen for seen, _ in self.by_load)
        return sum(within for _, within in self.by_load) / timed if timed > 0 else None


def initial(
    member: Member, objectives: Objectives, now_s: float, cost: float = 1.0, full_work: float | None = None
) -> Belief:
    """The belief of a member that nobody has measured: its prior, quality as declared.

    `full_work` is the work at which its device is full; by default its own places, all taken.
    """
    prior = prior_of(objectives, full_work or (places_of(member) + BATCH_START) * cost)
    return Belief(
        member_id=member.member_id,
        prior=prior,
        objectives=objectives,
        quality=member.quality,
        cost=cost,
        updated_s=now_s,
        output_fit=NO_LINE.fit(prior.output_idle_s, prior.full_work, prior.output_full_s),
        first_fit=NO_LINE.fit(prior.first_idle_s, prior.full_work, prior.first_full_s),
        answer_tokens=prior.answer_tokens,
        replicas=replicas_of(member),
    )


def replicas_of(member: Member) -> ByReplica:
    """Those of a member that nobody has measured."""
    several = len(member.replicas) > 1
    return {replica.replica_id: WELL for replica in member.replicas} if several else NO_REPLICAS


def prior_of(objectives: Objectives, full_work: float) -> Prior:
    """What is assumed of a member on a device that is full at `full_work`."""
    first_s = objectives.time_to_first_token_s / (512.0 + FIRST_TOKEN_OVERHEAD_TOKENS)
    return Prior(
        full_work=full_work,
        output_idle_s=PRIOR_IDLE * objectives.time_per_output_token_s,
        output_full_s=PRIOR_FULL * objectives.time_per_output_token_s,
        first_idle_s=PRIOR_IDLE * first_s,
        first_full_s=PRIOR_FULL * first_s,
    )


def initial_beliefs(route: Route, now_s: float) -> dict[str, Belief]:
    """First beliefs of a route's members; costs are relative to the cheapest where all declare one.

    Members of one pool are assumed to fill it alike, so that an unknown one is judged by its pool.
    """
    declared = [member.relative_cost for member in route.members]
    known = [cost for cost in declared if cost is not None and cost > 0]
    unit = min(known) if known and len(known) == len(declared) else None
    costs = {m.member_id: (m.relative_cost or 1.0) / unit if unit else 1.0 for m in route.members}
    full: dict[str, float] = {}
    for member in route.members:
        work = (places_of(member) + BATCH_START) * costs[member.member_id]
        full[pool_of(member)] = max(work, full.get(pool_of(member), 0.0))
    return {
        member.member_id: initial(
            member, route.objectives, now_s, costs[member.member_id], full[pool_of(member)]
        )
        for member in route.members
    }


def pool_of(member: Member) -> str:
    """The pool that a member's replicas belong to; its own where it has none."""
    return member.replicas[0].pool_id if member.replicas else member.member_id


def places_of(member: Member) -> int:
    """Requests that its replicas run at once, or a guess where they do not say."""
    return sum(replica.capacity_requests or UNKNOWN_PLACES for replica in member.replicas) or UNKNOWN_PLACES
