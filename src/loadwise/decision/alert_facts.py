"""What alert rules read and say: figures of a server's health, findings, conditions, and the rule itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from loadwise.decision.burn import Share
from loadwise.decision.facts import Policy
from loadwise.decision.improvement import Improvement
from loadwise.decision.silence import Silence


class Severity(StrEnum):
    """How soon a person should look."""

    TICKET = "ticket"
    PAGE = "page"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """A configuration that was taken back `seconds_ago`, and the shares within objectives compared."""

    from_version: int
    to_version: int
    seconds_ago: float
    now_fraction: float | None = None
    good_fraction: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The figures that alert rules read; None is "not known"."""

    error_fraction: float | None = None
    avg_latency_ms: float | None = None
    improvement: Improvement | None = None
    # Members that should serve, and those that are out.
    members: int = 0
    members_out: Sequence[str] = ()
    # Replicas that are out while others of their members serve.
    replicas_out: Sequence[str] = ()
    # Models whose last build failed, with the reason.
    failed_builds: Mapping[str, str] | None = None
    # Per route, requests judged and missed in each of `burn.WINDOWS_S`.
    objectives: Mapping[str, Mapping[float, Share]] = field(default_factory=dict)
    # Per pool, the load score's component `queue` (0..1).
    queues: Mapping[str, float] = field(default_factory=dict)
    # Per replica the age of its latest reading; per pool that of its freshest.
    reading_ages_s: Mapping[str, float] = field(default_factory=dict)
    pool_ages_s: Mapping[str, float] = field(default_factory=dict)
    # Since the loop's last decision; None while it is stopped.
    loop_age_s: float | None = None
    silences: Sequence[Silence] = ()
    rollback: Rollback | None = None
    # Rollouts that were taken back, by route (and key), since when, in seconds.
    rollouts_back_s: Mapping[str, float] = field(default_factory=dict)
    # Since each part of ours last failed in a way that serving survived.
    faults_ago_s: Mapping[str, float] = field(default_factory=dict)
    # Since the journal last lost events; None where it never did.
    journal_lost_ago_s: float | None = None
    # Since a monitoring system that is read was last read well; None without one, or while it is well.
    monitoring_age_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that passes a rule's limit: what it is (empty for the whole server) and its figure."""

    value: float
    subject: str = ""
    evidence: Mapping[str, float | int | str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A rule that holds now for one subject: the figure, the limit it passed, and what to do."""

    name: str
    severity: Severity
    value: float
    limit: float
    message: str
    remedy: str
    undo: str = ""
    subject: str = ""
    evidence: Mapping[str, float | int | str | None] = field(default_factory=dict)
    # Seconds that it must hold before it is an alert, and be gone before that ends.
    for_s: float = 0.0
    clear_s: float = 60.0

    @property
    def key(self) -> tuple[str, str]:
        """What tells alerts apart: rule and subject."""
        return self.name, self.subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row of the table."""

    name: str
    severity: Severity
    find: Callable[[Policy, Health, float], Iterator[Finding]]
    limit: Callable[[Policy], float]
    message: str
    remedy: str
    undo: str
    for_s: float = 0.0
    clear_s: float = 60.0
    # From the fault to the alert at the latest, at steady traffic.
    within_s: float = 60.0
    # An alert goes on until its figure is below this share of the limit.
    keeps: float = 0.9
