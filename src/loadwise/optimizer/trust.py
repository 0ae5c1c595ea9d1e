"""The quality that feedback gives members: evidence per member, kept in the journal, applied to beliefs."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from loadwise.decision import feedback
from loadwise.decision.feedback import Evidence
from loadwise.errors import ConfigurationError, RequestError
from loadwise.logs import get_logger
from loadwise.optimizer.ensemble_manager import ModelEnsembleManager
from loadwise.optimizer.late_scores import Due, due
from loadwise.ports import Clock, Feedback, JsonObject
from loadwise.telemetry.journal.journal import Journal, JournalError
from loadwise.telemetry.journal.reader import Reader
from loadwise.telemetry.journal.store import Scored
from loadwise.telemetry.journal.trail import Attempt, Trail, trails_of

log = get_logger(__name__)
# A belief is made anew when its quality moved by more than this.
NOTICED: Final = 1e-3
ADMIN_SCOPE: Final = "admin:write"
_SOURCE: Final = re.compile(r"[A-Za-z0-9._:@/-]{1,64}")


class Trust:
    """Takes feedback once per request and source, and keeps each member's quality what it should be.

    `compare` is given each score's part in comparisons, by the name under which it is kept.
    """

    def __init__(
        self, ensemble: ModelEnsembleManager, clock: Clock, compare: Callable[[Mapping[str, Due]], None]
    ) -> None:
        self._ensemble = ensemble
        self._clock = clock
        self._compare = compare
        self._evidence: dict[str, Evidence] = {}

    def restore(self, said: Iterable[Scored]) -> None:
        """Counts feedback that a journal kept, oldest first, and no other."""
        self._evidence.clear()
        for scored in said:
            self._hear(scored)
        self.apply()

    def apply(self) -> None:
        """Every member with feedback is believed to be as good as the rule says; others are left alone."""
        beliefs, fleet, now_s = self._ensemble.beliefs, self._ensemble.fleet, self._clock.wall_s()
        for name, evidence in self._evidence.items():
            belief = beliefs.get(name)
            if belief is None:
                continue
            quality = feedback.quality(fleet.parts(name).member.quality, evidence, now_s)
            if _moved(belief.quality, quality):
                beliefs[name] = belief._replace(quality=quality)

    async def give(self, journal: Journal | None, given: Feedback) -> JsonObject:
        """The score is journaled and counts; giving it again changes nothing.

        Raises `ConfigurationError` for wrong values and `RequestError`: 404 unknown request, 409 not ended,
        or scored otherwise by the same source, 410 too late, 503 where nothing can be journaled.
        """
        _check(given)
        try:
            scored, before, parts = await asyncio.to_thread(self._kept, journal, given)
        except JournalError as error:
            raise _unavailable(str(error)) from error
        if before is not None:
            return _again(given, before)
        self._hear(scored)
        self._compare(parts)
        self.apply()
        log.info("feedback", request_id=given.request_id, member=scored.member, source=given.source)
        return self._answer("recorded", scored)

    def _kept(
        self, journal: Journal | None, given: Feedback
    ) -> tuple[Scored, Scored | None, Mapping[str, Due]]:
        if journal is None:
            raise _unavailable("The journal is off (journal.enabled).")
        journal.flush()
        if journal.taken_over:
            # Reading what the other kept would count this score a second time.
            raise _unavailable(
                "What another server kept of the journal is being read. Give it again in a second."
            )
        with Reader(journal.folder) as reader:
            attempt = _meant(trails_of(reader, given.request_id), given)
        now_s = self._clock.wall_s()
        ended_s = attempt.ended_s
        if attempt.ended is None or ended_s is None or now_s - ended_s > feedback.LATEST_S:
            raise RequestError(
                f"The request {given.request_id!r} ended more than {feedback.LATEST_S / 86_400:g} days ago; "
                "feedback is taken no later than that.",
                status=410,
                param="request_id",
                code="feedback_too_late",
            )
        scored = Scored(
            request_id=given.request_id,
            source=given.source,
            member=attempt.ended.outcome.member_id,
            # Whose request it was, also where an administrator passes feedback on.
            tenant=attempt.decided.request.principal.tenant,
            score=given.score,
            at_s=now_s,
            started_s=attempt.ended.started_s or 0.0,
        )
        parts = due(attempt, scored)
        states = {name: msgspec.msgpack.encode(part) for name, part in parts.items()}
        return scored, journal.ask(lambda store: store.score(scored, states)), parts

    def _hear(self, scored: Scored) -> None:
        evidence = self._evidence.get(scored.member, {})
        self._evidence[scored.member] = feedback.heard(evidence, scored.tenant, scored.score, scored.at_s)

    def _answer(self, status: str, scored: Scored) -> JsonObject:
        belief = self._ensemble.beliefs.get(scored.member)
        return {
            "status": status,
            "request_id": scored.request_id,
            "source": scored.source,
            "score": scored.score,
            "member": scored.member,
            "tenant": scored.tenant,
            "quality": None if belief is None else belief.quality,
        }


def _moved(before: float | None, after: float | None) -> bool:
    if before is None or after is None:
        return before is not after
    return abs(before - after) > NOTICED


def _check(given: Feedback) -> None:
    if not (math.isfinite(given.score) and 0.0 <= given.score <= 1.0):
        raise ConfigurationError(f"score must lie in 0..1, not {given.score!r}.", field="score")
    if _SOURCE.fullmatch(given.source) is None:
        raise ConfigurationError(
            f"source names who judged, in 1 to 64 letters, digits or ._:@/-, not {given.source!r:.80}.",
            field="source",
        )


def _meant(trails: Iterable[Trail], given: Feedback) -> Attempt:
    """The latest answer with that id, among those that who asks may know of.

    A key of another tenant learns nothing; an administrator may not know which tenant's is meant.
    """
    principal = given.principal
    admin = ADMIN_SCOPE in principal.scopes
    answers = [
        (trail.tenant, trail.answered)
        for trail in trails
        if trail.answered is not None and (admin or trail.tenant == principal.tenant)
    ]
    tenants = {tenant for tenant, _ in answers}
    if len(tenants) > 1:
        raise RequestError(
            f"Requests of {len(tenants)} tenants carried the id {given.request_id!r:.200}. Send the feedback "
            "with a key of the tenant that is meant, which then needs the scope feedback.",
            status=409,
            param="request_id",
            code="request_ambiguous",
        )
    found = answers[-1][1] if answers else None
    if found is None:
        raise RequestError(
            f"The journal knows no answered request {given.request_id!r:.200}. Send the x-request-id of an "
            "answer that has ended. The oldest requests are forgotten (journal.max_bytes, "
            "journal.max_age_sec).",
            status=404,
            param="request_id",
            code="request_not_found",
        )
    return found


def _again(given: Feedback, before: Scored) -> JsonObject:
    if before.score != given.score:
        raise RequestError(
            f"{given.source!r} scored the request {given.request_id!r} before, with {before.score:g}; "
            "the first score stays.",
            status=409,
            param="score",
            code="feedback_given",
        )
    return {
        "status": "already_recorded",
        "request_id": given.request_id,
        "source": given.source,
        "score": before.score,
        "member": before.member,
        "tenant": before.tenant,
    }


def _unavailable(why: str) -> RequestError:
    return RequestError(
        f"Feedback cannot be kept now, so it does not count: {why}",
        status=503,
        kind="server_error",
        code="journal_unavailable",
    )
