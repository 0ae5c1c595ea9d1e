"""What an operator could change: each piece of advice names the setting and the figures that speak for it.

The rules stand in order of urgency; each says one thing, or nothing where its figures are not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

# Below this share within objectives something should change, and above it there is room.
WANTED: Final = 0.95
# Requests below which a share says little.
ENOUGH: Final = 50
# A member this much further from its objectives than the best one gets less.
BEHIND: Final = 0.20


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberFigures:
    """A member as the report knows it; None is unknown."""

    member_id: str
    quality: float | None = None
    weight: float = 1.0
    requests: int = 0
    within_fraction: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What advice rests on; None is unknown."""

    requests: int = 0
    within_fraction: float | None = None
    high_load: float = 0.8
    time_high_fraction: float | None = None
    members: Sequence[MemberFigures] = ()
    standby: Sequence[str] = ()
    max_ensemble_size: int = 1
    allow_degrade: bool = True
    ensemble: bool = True
    # Share of time that goes without optimisation, and the gain's interval.
    block_share: float = 0.0
    gain_low: float | None = None
    gain_high: float | None = None
    failed_builds: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Change `setting` as `change` says, because of `evidence`."""

    setting: str
    change: str
    evidence: str

    @property
    def sentence(self) -> str:
        """The advice in one sentence."""
        return f"{self.change} ({self.setting}): {self.evidence}."


def advise(figures: Figures) -> tuple[Advice, ...]:
    """Advice for these figures, most urgent first; empty when nothing suggests itself."""
    return tuple(found for rule in RULES if (found := rule(figures)) is not None)


def _missing(figures: Figures) -> str | None:
    """The share within objectives as evidence, where it is too low and rests on enough requests."""
    within = figures.within_fraction
    if within is None or within >= WANTED or figures.requests < ENOUGH:
        return None
    return f"{within:.1%} of {figures.requests} requests met their objectives"


def _harm(figures: Figures) -> Advice | None:
    if figures.gain_high is None or figures.gain_high >= 0.0:
        return None
    interval = f"{100 * (figures.gain_low or -1.0):.1f} to {100 * figures.gain_high:.1f} points"
    return Advice(
        setting="enable_ensemble",
        change="Set it to false, or put the last good configuration back",
        evidence=f"optimisation costs requests within objectives, {interval} with 95 % confidence",
    )


def _degrade(figures: Figures) -> Advice | None:
    missing = _missing(figures)
    if missing is None or figures.allow_degrade or len(figures.members) < 2:
        return None
    return Advice(
        setting="allow_degrade",
        change="Set it to true, so that faster members may answer too",
        evidence=f"{missing}, and only the default member may answer auto",
    )


def _admit(figures: Figures) -> Advice | None:
    missing = _missing(figures)
    if missing is None or not figures.standby:
        return None
    return Advice(
        setting="max_ensemble_size",
        change=f"Raise it from {figures.max_ensemble_size} to {figures.max_ensemble_size + 1}",
        evidence=f"{missing}, and {', '.join(figures.standby)} stands by",
    )


def _capacity(figures: Figures) -> Advice | None:
    missing, high = _missing(figures), figures.time_high_fraction
    if missing is None or high is None or high < 0.1:
        return None
    return Advice(
        setting="upstreams.NAME.replicas",
        change="Add a replica, or a faster member",
        evidence=f"{missing}, and load was high (from {figures.high_load:.2f}) for {high:.0%} of the time",
    )


def _slow_member(figures: Figures) -> Advice | None:
    timed = [m for m in figures.members if m.within_fraction is not None and m.requests >= ENOUGH]
    if len(timed) < 2:
        return None
    worst = min(timed, key=lambda member: member.within_fraction or 0.0)
    best = max(timed, key=lambda member: member.within_fraction or 0.0)
    low, high = worst.within_fraction or 0.0, best.within_fraction or 0.0
    if high - low < BEHIND:
        return None
    return Advice(
        setting=f"weight of {worst.member_id}",
        change=f"Lower it below {worst.weight:g}",
        evidence=f"{low:.0%} of its {worst.requests} requests met their objectives, {high:.0%} of "
        f"{best.member_id}'s",
    )


def _alone(figures: Figures) -> Advice | None:
    if len(figures.members) != 1:
        return None
    return Advice(
        setting="models or upstreams",
        change="Add a faster or a better member",
        evidence=f"{figures.members[0].member_id} is the only one, so there is nothing to choose between",
    )


def _quality(figures: Figures) -> Advice | None:
    unknown = [member.member_id for member in figures.members if member.quality is None]
    if not unknown or len(figures.members) < 2:
        return None
    return Advice(
        setting="upstreams.NAME.quality",
        change=f"Give {', '.join(unknown)} a quality in 0..1",
        evidence="without one it ranks as the mean of the known ones",
    )


def _proof(figures: Figures) -> Advice | None:
    if figures.block_share > 0.0 or not figures.ensemble:
        return None
    return Advice(
        setting="experiment.block_share",
        change="Set it to 0.1 to measure what optimisation gains",
        evidence="no time goes without optimisation, so there is nothing to compare with",
    )


def _builds(figures: Figures) -> Advice | None:
    if not figures.failed_builds:
        return None
    return Advice(
        setting="compile_mode",
        change="Choose another, or repeat with POST /v1/optimization/force_recompile",
        evidence=f"the last build of {', '.join(figures.failed_builds)} failed and the original serves",
    )


RULES: Final[tuple[Callable[[Figures], Advice | None], ...]] = (
    _harm,
    _degrade,
    _admit,
    _capacity,
    _slow_member,
    _builds,
    _alone,
    _quality,
    _proof,
)
