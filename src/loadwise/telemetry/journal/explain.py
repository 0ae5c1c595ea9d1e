"""One request's story as values: what was asked and known, who answered and why, and how it went."""

from __future__ import annotations

from collections.abc import Iterator

from loadwise.clock import iso_utc
from loadwise.decision.beliefs import Belief
from loadwise.decision.candidates import Refusal
from loadwise.decision.choices import Choice
from loadwise.decision.facts import RequestFacts
from loadwise.decision.limits import used
from loadwise.decision.question import Question
from loadwise.decision.stages import shares
from loadwise.decision.strategy import Strategy
from loadwise.errors import UnknownNameError
from loadwise.ports import JsonObject
from loadwise.telemetry.journal import records
from loadwise.telemetry.journal.reader import Reader
from loadwise.telemetry.journal.replay import Replayed, followed
from loadwise.telemetry.journal.trail import Attempt, Trail, trails_of


def explain(
    reader: Reader, request_id: str, *, tenant: str | None = None, number: int | None = None
) -> JsonObject:
    """The story as JSON values, of the latest request with that id.

    Where several carried it, `tenant` asks for that one's latest, `number` for the one of that place among
    all, from 1, oldest first; `carried_by` lists them. `UnknownNameError` for one that is not known.
    """
    trails = trails_of(reader, request_id)
    place = _place(trails, tenant, number)
    if place is None:
        whose = "" if tenant is None else f" of {tenant!r:.80}"
        place_told = "" if number is None or not trails else f" number {number} (there are {len(trails)})"
        raise UnknownNameError(
            f"The journal {reader.path} knows no request {request_id!r:.200}{whose}{place_told}. Use the "
            "x-request-id of an answer; the oldest requests are forgotten (journal.max_bytes, "
            "journal.max_age_sec)."
        )
    trail = trails[place]
    return {
        "request_id": request_id,
        "number": place + 1,
        "carried_by": [{"time": iso_utc(each.began_s), "tenant": each.tenant} for each in trails],
        "attempts": [_attempt(each, _question(reader, each)) for each in trail.attempts],
        "refusals": _refusals(trail),
        "feedback": [
            {"time": iso_utc(said.at_s), "source": said.source, "score": said.score, "member": said.member}
            for said in trail.feedback
        ],
    }


def _place(trails: list[Trail], tenant: str | None, number: int | None) -> int | None:
    """Which of the requests is meant; None where none is."""
    meant = [
        place
        for place, trail in enumerate(trails)
        if tenant in (None, trail.tenant) and number in (None, place + 1)
    ]
    return meant[-1] if meant else None


def _question(reader: Reader, attempt: Attempt) -> Question | None:
    """What the choice was made from; None where rows that it rests on cannot be read."""
    for follower, row in followed(reader.batches(attempt.segment), Replayed()):
        if isinstance(row, records.Decided) and row == attempt.decided:
            return follower.question(row)
        follower.take(row)
    return None


def _attempt(attempt: Attempt, question: Question | None) -> JsonObject:
    decided = attempt.decided
    return {
        "time": iso_utc(attempt.at_s),
        "facts": _facts(decided.request),
        "load": _load(decided, None if question is None else question.strategy),
        "choice": _choice(decided, question),
        "entry": _entry(decided),
        "changes": _changes(decided.dispatched),
        "config_version": None if decided.dispatched is None else decided.dispatched.config_version,
        "ended": _ended(attempt),
    }


def _facts(request: RequestFacts) -> JsonObject:
    return {
        "endpoint": request.endpoint.value,
        "model": request.model,
        "key": request.principal.key_id,
        "tenant": request.principal.tenant,
        "prompt_tokens": request.prompt_tokens,
        "prompt_tokens_bound": request.prompt_tokens_bound,
        "prompt_tokens_expected": request.prompt_tokens_expected,
        "explicit": dict(request.explicit),
        "features": sorted(request.features),
        "stream": request.stream,
        "n": request.n,
        "continues_a_conversation": request.continues,
        "optimisation_off": request.off or not request.principal.optimize,
        "quality_preference": request.quality_preference,
        "speed_preference": request.speed_preference,
    }


def _load(decided: records.Decided, strategy: Strategy | None) -> JsonObject:
    sent = decided.dispatched
    return {
        "strategy": None if sent is None else sent.strategy.value,
        "strategy_reason": None if strategy is None else strategy.reason.value,
        "load_score": None if sent is None else sent.load_score,
        "in_flight": {each.member_id: each.in_flight for each in decided.pressures},
    }


def _choice(decided: records.Decided, question: Question | None) -> JsonObject:
    choice = decided.choice
    if isinstance(choice, Refusal):
        return {"member": None, "reason": choice.reason.value, "message": choice.message}
    known = {} if question is None else {belief.member_id: belief for belief in question.beliefs}
    return {
        "member": choice.member_id,
        "replica": None if decided.dispatched is None else decided.dispatched.replica_id,
        "reason": choice.reason.value,
        "propensity": choice.propensity,
        "draw": decided.draw,
        "control": decided.control,
        "without": sorted(decided.excluded),
        "expected_time_to_first_token_s": choice.time_to_first_token_s,
        "expected_time_per_output_token_s": choice.time_per_output_token_s,
        "advised": _advised(decided.dispatched),
        "candidates": list(_candidates(choice, known)),
    }


def _entry(decided: records.Decided) -> JsonObject | None:
    """What the member was found to have room by; None where nobody asked, or an older version did not say."""
    let_in = None if decided.dispatched is None else decided.dispatched.let_in
    if let_in is None:
        return None
    requests, tokens = used(let_in.minute, decided.now_s)
    return {
        "reason": let_in.reason.value,
        "in_flight": let_in.pressure.in_flight,
        "in_flight_elsewhere": let_in.elsewhere,
        "places": let_in.own.running,
        "expected_tokens": let_in.tokens,
        "last_minute": {"requests": requests, "tokens": tokens},
    }


def _advised(sent: records.Dispatched | None) -> JsonObject | None:
    if sent is None or sent.advised is None:
        return None
    return {**sent.advised._asdict(), "changes": dict(sent.advised.changes)}


def _candidates(choice: Choice, known: dict[str, Belief]) -> Iterator[JsonObject]:
    for member_id, propensity in choice.candidates:
        belief = known.get(member_id)
        yield {
            "member": member_id,
            "propensity": propensity,
            "quality": None if belief is None else belief.quality,
            "health": None if belief is None else belief.health.value,
            "outcomes": None if belief is None else belief.outcomes,
            "error_rate": belief.error_rate if belief is not None and belief.outcomes else None,
            "within_objectives_fraction": None if belief is None else belief.within_fraction,
        }


def _changes(sent: records.Dispatched | None) -> JsonObject:
    if sent is None:
        return {}
    return {name: {"value": value, "because": sent.because.get(name)} for name, value in sent.changes.items()}


def _ended(attempt: Attempt) -> JsonObject | None:
    ended = attempt.ended
    if ended is None:
        return None
    outcome, spent, tokens = ended.outcome, shares(ended.outcome), ended.outcome.output_tokens
    answering_s = spent.decode_s
    many = answering_s is not None and tokens is not None and tokens > 1
    return {
        "time": None if attempt.ended_s is None else iso_utc(attempt.ended_s),
        "ending": outcome.ending.value,
        "status": outcome.status,
        "finish_reason": outcome.finish_reason,
        "within_objectives": ended.within,
        "total_s": outcome.total_s,
        "time_to_first_token_s": outcome.time_to_first_token_s,
        "answering_s": answering_s,
        # Where the time went; the gateway's lies before `total_s`, the queue's is an estimate.
        "stages": spent._asdict(),
        "time_per_output_token_s": (answering_s or 0.0) / (tokens - 1) if many and tokens else None,
        "prompt_tokens": outcome.prompt_tokens,
        "cached_tokens": outcome.cached_tokens,
        "output_tokens": tokens,
        "concurrency": outcome.concurrency,
    }


def _refusals(trail: Trail) -> list[JsonObject]:
    return [
        {
            "time": iso_utc(at_s),
            "status": refusal.status,
            "code": refusal.code,
            "retry_after_s": refusal.retry_after_s,
        }
        for at_s, refusal in trail.refusals
    ]
