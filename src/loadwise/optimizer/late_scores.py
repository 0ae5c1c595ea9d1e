"""Scores on their way into comparisons: kept with the feedback, until what they changed is kept as well.

A process that dies in between leaves the note, and the next start counts it: each score counts once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec

from loadwise.decision.facts import Ending
from loadwise.decision.fault import Fault, fault_of
from loadwise.optimizer.assignment import unit_of
from loadwise.optimizer.experiments import Experiments
from loadwise.optimizer.tallies import Measure
from loadwise.ports import Enrolled
from loadwise.telemetry.journal.store import Scored
from loadwise.telemetry.journal.trail import Attempt

# Everything kept here begins with this.
SCORE: Final = "proof/score/"


class Due(msgspec.Struct, frozen=True, array_like=True):
    """A score (0..1) that is to be counted, and in which comparisons."""

    route: str
    unit: str
    enrolled: Enrolled
    score: float

    def count(self, experiments: Experiments) -> None:
        """It counts where those comparisons go on."""
        experiments.compare(self.route, self.unit, self.enrolled, Measure.SCORES, self.score)


def due(attempt: Attempt, scored: Scored) -> Mapping[str, Due]:
    """By the name under which it is kept; nothing where the answer was in no comparison.

    What a client did to its request (it left, or asked wrongly) says nothing of either kind.
    """
    decided, ended = attempt.decided, attempt.ended
    enrolled = None if decided.dispatched is None else decided.dispatched.enrolled
    if enrolled is None or ended is None:
        return {}
    if ended.outcome.ending is Ending.ABANDONED or fault_of(ended.outcome) is Fault.CLIENT:
        return {}
    asked = decided.request
    return {_name(scored): Due(asked.model, unit_of(asked), enrolled, scored.score)}


def _name(scored: Scored) -> str:
    """As long as clients' names may be, this is not."""
    said = (scored.request_id, scored.tenant, scored.source, scored.started_s)
    return SCORE + hashlib.sha256(msgspec.msgpack.encode(said)).hexdigest()[:32]
