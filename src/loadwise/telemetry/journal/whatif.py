"""What another configuration would have earned, estimated from a journal where that can support it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from loadwise.decision.candidates import Refusal
from loadwise.decision.choices import Choice, ChoiceReason
from loadwise.decision.facts import Ending, Outcome
from loadwise.decision.fault import Fault, fault_of
from loadwise.decision.offpolicy import Estimate, OffPolicy, Sample, evaluate
from loadwise.decision.question import Question, answer
from loadwise.ports import JsonObject
from loadwise.telemetry.journal import records
from loadwise.telemetry.journal.alternative import Alternative
from loadwise.telemetry.journal.reader import Batch
from loadwise.telemetry.journal.replay import Replayed, followed

# Requests of so many seconds share a queue, and count as one cluster.
CLUSTER_S: Final = 10.0
# Choices that were bound to their member, whatever the configuration.
BOUND: Final = frozenset(
    {
        ChoiceReason.NAMED,
        ChoiceReason.OFF,
        ChoiceReason.CONTROL,
        ChoiceReason.STOPPED,
        ChoiceReason.CONVERSATION,
        ChoiceReason.CONVERSATION_RETURNED,
    }
)
CAVEAT: Final = (
    "Requests share queues: the estimate takes the load as it was, and says nothing of how another "
    "configuration would change it. A switchback experiment does."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A choice that was free, what the other configuration would have done, and how it went."""

    question: Question
    written: Choice
    other: Choice
    ended: records.Ended


# Name of each figure, and what one outcome earns of it; None says nothing.
REWARDS: Final[dict[str, Callable[[Case], float | None]]] = {
    "within_objectives": lambda case: None if case.ended.within is None else float(case.ended.within),
    "failed": lambda case: float(case.ended.outcome.ending is Ending.FAILED),
    "quality": lambda case: _quality(case),
}


def what_if(batches: Iterable[Batch], other: Alternative) -> JsonObject:
    """Each figure under the logged configuration and under the other one, with intervals of 95 %."""
    replayed = Replayed()
    cases = list(_cases(batches, other, replayed))
    figures = {}
    for name, reward in REWARDS.items():
        earned = [(case, value) for case in cases if (value := reward(case)) is not None]
        figures[name] = _shown(evaluate([_sample(case, value) for case, value in earned]))
    return {
        "decisions": replayed.decisions,
        "free_decisions_with_outcome": len(cases),
        "figures": figures,
        "caveat": CAVEAT,
        "dropped": replayed.dropped,
        "skipped": replayed.skipped,
        "gaps": replayed.gaps,
    }


def _cases(batches: Iterable[Batch], other: Alternative, replayed: Replayed) -> Iterator[Case]:
    """Free choices with their outcomes, in the order in which they ended."""
    waiting: dict[tuple[str, str, float], tuple[Question, Choice, Choice]] = {}
    for follower, row in followed(batches, replayed):
        match row:
            case records.Decided():
                replayed.decisions += 1
                asked = follower.question(row)
                chosen = _free(asked, row, other)
                if chosen is not None and row.dispatched is not None:
                    sent = row.dispatched
                    waiting[row.request.request_id, sent.replica_id, sent.started_s] = (asked, *chosen)
            case records.Step():
                other.stepped(follower, row)
            case records.Ended() if row.started_s is not None:
                ended = row.outcome
                found = waiting.pop((ended.request_id, ended.replica_id, row.started_s), None)
                if found is not None and not _silent(ended):
                    yield Case(question=found[0], written=found[1], other=found[2], ended=row)
        follower.take(row)


def _free(asked: Question, row: records.Decided, other: Alternative) -> tuple[Choice, Choice] | None:
    """What was chosen freely, and what the other configuration chooses, where both choose at all."""
    written = row.choice
    if isinstance(written, Refusal) or written.reason in BOUND or row.excluded:
        return None
    chosen = answer(other.asked(asked))
    return None if isinstance(chosen, Refusal) else (written, chosen)


def _silent(ended: Outcome) -> bool:
    """Whether an outcome says nothing of the member: the client left, or failed by its own doing."""
    return ended.ending is Ending.ABANDONED or fault_of(ended) is Fault.CLIENT


def _quality(case: Case) -> float | None:
    member_id = case.written.member_id
    return next(b.quality for b in case.question.beliefs if b.member_id == member_id)


def _sample(case: Case, reward: float) -> Sample:
    strategy = case.question.strategy
    return Sample(
        reward=reward,
        chosen=case.written.member_id,
        logged=dict(case.written.candidates),
        target=dict(case.other.candidates),
        stratum="" if strategy is None else strategy.name.value,
        cluster=int(case.question.now_s // CLUSTER_S),
    )


def _shown(found: OffPolicy) -> JsonObject:
    return {
        "supported": not found.missing,
        "missing": list(found.missing),
        "samples": found.samples,
        "effective_samples": found.effective_samples,
        "overlap": found.overlap,
        "largest_weight": found.largest_weight,
        "logged": _estimate(found.logged),
        "inverse_propensity": _estimate(found.inverse_propensity),
        "doubly_robust": _estimate(found.doubly_robust),
    }


def _estimate(found: Estimate | None) -> JsonObject | None:
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high}
