"""Why a request gets no engine, as errors in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loadwise.decision.admission import Admission, AdmissionReason
from loadwise.decision.candidates import Refusal
from loadwise.decision.facts import RequestFacts
from loadwise.errors import RequestError


def unknown_model(request: RequestFacts, known: Sequence[str]) -> RequestError:
    """404: no route and no member has that name."""
    return RequestError(
        f"The model {request.model!r:.200} does not exist. Known models: {', '.join(known) or 'none'}.",
        status=404,
        param="model",
        code="model_not_found",
    )


def refused(refusal: Refusal) -> RequestError:
    """The core's refusal: 400, 403, 404 or 503."""
    return RequestError(
        refusal.message,
        status=refusal.status,
        kind=_KINDS.get(refusal.status, "invalid_request_error"),
        param=refusal.param,
        code=refusal.code,
        retry_after_s=refusal.retry_after_s,
    )


_KINDS: Final = {403: "permission_error", 503: "server_error"}
_NO_ROOM: Final = {
    AdmissionReason.QUEUE_FULL: "Every place is taken, and so is the queue",
    AdmissionReason.TOO_LATE: "The answer would begin later than its objective",
    AdmissionReason.TOO_SLOW: "The answer would come more slowly than its objective",
    AdmissionReason.REQUESTS_PER_MINUTE: "The limit of requests per minute is reached",
    AdmissionReason.TOKENS_PER_MINUTE: "The limit of tokens per minute is reached",
    AdmissionReason.MAX_CONCURRENT: "The limit of requests at once is reached",
}


def no_room(request: RequestFacts, admission: Admission) -> RequestError:
    """429 with the seconds after which trying again makes sense; the reason is its code."""
    retry_after_s = admission.retry_after_s or 1.0
    return RequestError(
        f"{_NO_ROOM[admission.reason]} ({request.model!r:.200}). Try again in {retry_after_s:g} s.",
        status=429,
        kind="rate_limit_error",
        code=admission.reason.value,
        retry_after_s=retry_after_s,
    )


def none_left(request: RequestFacts) -> RequestError:
    """503: every replica that could answer failed already."""
    return RequestError(
        f"No engine is left that could answer {request.model!r}. Try again.",
        status=503,
        kind="server_error",
        code="no_engine_available",
    )
