"""Leaving rotation and coming back: when to probe who is out, and how fast it takes its share again."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from loadwise.decision.beliefs import Health

# Faults in a row that take a member, or a replica, out; fewer while it is on its ramp.
FAULTS_IN_A_ROW: Final = 5
FAULTS_ON_RAMP: Final = 2
# Faults in a row after which a replica is no proof that another one's are its own.
FAULTS_DOUBTED: Final = 2
PROBE_AFTER_S: Final = 5.0
PROBE_AFTER_MOST_S: Final = 120.0
PROBES_NEEDED: Final = 3
# Share of requests that who is out gets when its probe is due.
PROBE_SHARE: Final = 0.05
RAMP_S: Final = 30.0


class HealthReason(StrEnum):
    """Why the health of a member, or of a replica, changed."""

    FAULTS_IN_A_ROW = "faults_in_a_row"
    FAULT_FRACTION = "fault_fraction"
    SILENT = "silent"
    RAMP_FAILED = "ramp_failed"
    PROBES_PASSED = "probes_passed"
    RAMP_COMPLETE = "ramp_complete"


def probe_after_s(removals: int) -> float:
    """Seconds until who is out may be probed: doubling with each removal, to two minutes."""
    return min(PROBE_AFTER_MOST_S, PROBE_AFTER_S * 2.0 ** min(removals, 10))


def probes_needed(*, alone: bool) -> int:
    """Answered probes after which who is out returns: one where nobody else answers."""
    return 1 if alone else PROBES_NEEDED


def taken(health: Health, since_s: float, now_s: float) -> float:
    """The share of its usual traffic that it takes: 1 healthy, 0 out, 0.1 to 1 on the ramp."""
    if health is Health.HEALTHY:
        return 1.0
    if health is Health.OUT:
        return 0.0
    return min(1.0, 0.1 + 0.9 * max(0.0, now_s - since_s) / RAMP_S)
