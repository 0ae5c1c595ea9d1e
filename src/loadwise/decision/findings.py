"""What each alert rule looks at: figures of a server's health that pass a limit, and whom they concern."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from loadwise.decision import burn
from loadwise.decision.alert_facts import Finding, Health
from loadwise.decision.burn import Share
from loadwise.decision.facts import Policy
from loadwise.decision.silence import beside_others, of_members

# Parts whose failures other rules tell: they are not of our making.
TOLD_ELSEWHERE: Final = frozenset({"observe", "monitoring"})


def _above(value: float | None, limit: float) -> Iterator[Finding]:
    if value is not None and value > limit:
        yield Finding(value=value)


def errors(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """Recent failures above the limit (a fraction)."""
    return _above(health.error_fraction, limit)


def latency(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """Mean latency above the limit (ms)."""
    return _above(health.avg_latency_ms, limit)


def improvement(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """A gain whose interval ends below the limit, where there was as much room to gain."""
    gained = health.improvement
    if gained is None or 1.0 - gained.unoptimised_fraction < limit or gained.high >= limit:
        return
    yield Finding(
        value=gained.value, evidence={"low": gained.low, "high": gained.high, "requests": gained.requests}
    )


def members_out(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """More members, or replicas of serving ones, out of rotation than the limit."""
    out = [*health.members_out, *health.replicas_out]
    if len(out) > limit:
        yield Finding(value=float(len(out)), evidence={"out": ", ".join(out), "members": health.members})


def builds(_: Policy, health: Health, __: float) -> Iterator[Finding]:
    """Each model whose last build failed."""
    for model_id, cause in (health.failed_builds or {}).items():
        yield Finding(value=1.0, subject=model_id, evidence={"cause": cause})


def burning(policy: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """Fast or slow burning; `limit` is the fast pair's factor, and the slow pair's scales with it."""
    for route, windows in health.objectives.items():
        for pair in (burn.FAST, burn.SLOW):
            factor = pair.factor * limit / burn.FAST.factor
            value = burn.passed(windows, pair, policy.objective_target, factor)
            if value is not None:
                yield Finding(value=value, subject=route, evidence=_shares(windows, pair))
                break


def spent(policy: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """Slow burning over days; `limit` is the factor."""
    for route, windows in health.objectives.items():
        value = burn.passed(windows, burn.SPENT, policy.objective_target, limit)
        if value is not None:
            yield Finding(value=value, subject=route, evidence=_shares(windows, burn.SPENT))


def _shares(windows: Mapping[float, Share], pair: burn.Pair) -> dict[str, float | int | str | None]:
    long, short = windows[pair.long_s], windows[pair.short_s]
    return {
        "long_window_s": pair.long_s, "long_judged": long.judged, "long_missed": long.missed,
        "short_window_s": pair.short_s, "short_judged": short.judged, "short_missed": short.missed,
    }  # fmt: skip


def queue(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """Each pool's queue above the limit (0..1)."""
    return _each_above(health.queues, limit)


def stale(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """Each replica whose latest reading is older than the limit (s)."""
    return _each_above(health.reading_ages_s, limit)


def blind(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """Each pool whose freshest reading is older than the limit (s)."""
    return _each_above(health.pool_ages_s, limit)


def _each_above(values: Mapping[str, float], limit: float) -> Iterator[Finding]:
    for name, value in values.items():
        if value > limit:
            yield Finding(value=value, subject=name)


def loop(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """The latest decision is older than the limit (s)."""
    return _above(health.loop_age_s, limit)


def silent(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """Each member with requests and no token for longer than the limit (s)."""
    for silence in of_members(health.silences):
        if silence.seconds > limit:
            yield Finding(value=silence.seconds, subject=silence.member_id)


def silent_beside_others(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """Each replica that is silent for longer than the limit (s), of members that have others."""
    for silence in beside_others(health.silences):
        if silence.seconds > limit:
            yield Finding(
                value=silence.seconds,
                subject=silence.replica_id,
                evidence={"member": silence.member_id, "replicas_serving": silence.serving},
            )


def silent_and_serving(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """Those of them that still get requests."""
    for silence in of_members(health.silences):
        if silence.seconds > limit and not silence.isolated:
            yield Finding(value=silence.seconds, subject=silence.member_id)


def rolled_back(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """A configuration that was taken back less than the limit ago (s)."""
    back = health.rollback
    if back is not None and back.seconds_ago < limit:
        yield Finding(
            value=back.seconds_ago,
            subject=f"v{back.from_version}",
            evidence={
                "from_version": back.from_version,
                "to_version": back.to_version,
                "within_objectives_fraction": back.now_fraction,
                "good_fraction": back.good_fraction,
            },
        )


def rollouts_back(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """Each rollout that was taken back less than the limit ago (s)."""
    for subject, seconds in health.rollouts_back_s.items():
        if seconds < limit:
            yield Finding(value=seconds, subject=subject)


def faults(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """Each part of ours that failed less than the limit ago (s)."""
    for part, seconds in health.faults_ago_s.items():
        if seconds < limit and part not in TOLD_ELSEWHERE:
            yield Finding(value=seconds, subject=part)


def journal_lost(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """The journal lost events less than the limit ago (s)."""
    ago_s = health.journal_lost_ago_s
    if ago_s is not None and ago_s < limit:
        yield Finding(value=ago_s)


def monitoring(_: Policy, health: Health, limit: float) -> Iterator[Finding]:
    """The monitoring system was not read for longer than the limit (s)."""
    return _above(health.monitoring_age_s, limit)
