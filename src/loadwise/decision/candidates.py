"""Who can answer a request at all: named, capable, fitting, allowed; or a refusal that names the field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from loadwise.decision.facts import COMPLETIONS, Endpoint, Feature, Member, RequestFacts, Route
from loadwise.decision.lineup import Lineup
from loadwise.decision.tags import ANY_TAGS

_EMPTY: frozenset[str] = frozenset()
# Named once: on its enumeration each look-up costs as much as the step around it.
_CHAT: Final = Endpoint.CHAT
# What means something else to another tokenizer.
TOKENIZER_BOUND = frozenset({Feature.TOKEN_IDS, Feature.LOGIT_BIAS, Feature.STOP_TOKEN_IDS})


class RefusalReason(StrEnum):
    """Why no member can answer."""

    UNKNOWN_MODEL = "unknown_model"
    UNSUPPORTED = "unsupported"
    NO_ENDPOINT = "no_endpoint"
    TOO_LONG = "too_long"
    QUALITY_FLOOR = "quality_floor"
    NONE_LEFT = "none_left"
    NOT_ALLOWED = "not_allowed"
    NOBODY_ANSWERS = "nobody_answers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A request that nobody can answer; the fields become an error in OpenAI's shape."""

    reason: RefusalReason
    status: int
    message: str
    param: str | None = None
    code: str | None = None
    # Seconds after which asking again makes sense; None where it does not, or nobody knows.
    retry_after_s: float | None = None


def candidates(
    lineup: Lineup, request: RequestFacts, excluded: frozenset[str] = _EMPTY
) -> Sequence[Member] | Refusal:
    """The members that can answer, in the route's order; never empty unless it is a refusal.

    `route.members` itself where all can.
    """
    route = lineup.route
    named = request.model != route.name
    members: Sequence[Member] = route.members
    if named:
        members = [member for member in members if member.member_id == request.model]
        if not members:
            return _unknown(route, request)
    rule = request.principal.tags
    if rule is not ANY_TAGS and rule:
        members = [member for member in members if rule.allows(member.tags)]
        if not members:
            return _not_allowed(request)
    if not named and route.quality_floor > 0.0:
        members = [m for m in members if m.quality is None or m.quality >= route.quality_floor]
        if not members:
            return _below_floor(route)
    if request.endpoint is not _CHAT and request.endpoint not in COMPLETIONS:
        members = [member for member in members if _serves(member, request.endpoint)]
        if not members:
            return _no_endpoint(request)
    if request.features:
        able = [member for member in members if _has_features(member, request.features)]
        if not able:
            return _unsupported(members, request)
        members = able
        if not named and request.features & TOKENIZER_BOUND:
            members = _same_tokenizer(route, members)
    fitting = members if _fits_all(lineup, request) else _fitting(members, request)
    if not fitting:
        return _too_long(members, request)
    if excluded:
        fitting = [m for m in fitting if not all(r.replica_id in excluded for r in m.replicas)]
    return fitting or _none_left(request)


def _serves(member: Member, endpoint: Endpoint) -> bool:
    known = member.capabilities.endpoints
    return known is None or endpoint in known


def _has_features(member: Member, features: frozenset[Feature]) -> bool:
    capabilities = member.capabilities
    return not capabilities.features_known or features <= capabilities.features


def _same_tokenizer(route: Route, members: Sequence[Member]) -> Sequence[Member]:
    """Those whose token ids are the default member's, whom a client of the route counts with.

    Where that one cannot answer, the first that can stands for it.
    """
    default = next((member for member in members if member.member_id == route.default_member), members[0])
    known = default.capabilities.tokenizer_fingerprint
    return [
        member
        for member in members
        if member is default or (known is not None and member.capabilities.tokenizer_fingerprint == known)
    ]


def _limit(request: RequestFacts) -> float:
    """The explicit limit of the answer in tokens, at least 1."""
    explicit = request.explicit
    return max(1, explicit.get("max_completion_tokens", explicit.get("max_tokens", 1))) if explicit else 1


def _fits_all(lineup: Lineup, request: RequestFacts) -> bool:
    """Whether even the smallest context holds the prompt and the answer."""
    prompt = request.prompt_tokens if request.prompt_tokens is not None else request.prompt_tokens_bound
    return prompt is None or prompt + _limit(request) <= lineup.context_tokens


def _fitting(members: Sequence[Member], request: RequestFacts) -> Sequence[Member]:
    """Those that hold the prompt and one token; if any, only those that hold the explicit limit too."""
    exact = request.prompt_tokens
    prompt = exact if exact is not None else request.prompt_tokens_bound or 0
    whole = _holding(members, prompt + _limit(request))
    if whole:
        return whole
    held = _holding(members, prompt + 1)
    if held or exact is not None:
        return held
    # Only a bound is known: the roomiest member may well hold the prompt, and says so itself if not.
    return [max(members, key=lambda member: member.capabilities.context_tokens or 0)]


def _holding(members: Sequence[Member], tokens: float) -> Sequence[Member]:
    found = []
    for member in members:
        context = member.capabilities.context_tokens
        if context is None or tokens <= context:
            found.append(member)
    return found


def _unknown(route: Route, request: RequestFacts) -> Refusal:
    rule = request.principal.tags
    allowed = [member.member_id for member in route.members if rule.allows(member.tags)]
    known = ", ".join([route.name, *allowed])
    return Refusal(
        reason=RefusalReason.UNKNOWN_MODEL,
        status=404,
        message=f"The model {request.model!r} does not exist. Known models: {known}.",
        param="model",
        code="model_not_found",
    )


def _not_allowed(request: RequestFacts) -> Refusal:
    rule = request.principal.tags
    asked = [f"requires the tag {tag}" for tag in sorted(rule.require)]
    asked += [f"forbids the tag {tag}" for tag in sorted(rule.forbid)]
    return Refusal(
        reason=RefusalReason.NOT_ALLOWED,
        status=403,
        message=f"This key may not use {request.model!r}: it {' and '.join(asked)}. "
        "Name another model, or ask the operator.",
        param="model",
        code="model_not_allowed",
    )


def _no_endpoint(request: RequestFacts) -> Refusal:
    return Refusal(
        reason=RefusalReason.NO_ENDPOINT,
        status=404,
        message=f"No model behind {request.model!r} serves {request.endpoint.value}. "
        "Name a member that does.",
        param="model",
        code="unsupported_endpoint",
    )


def _below_floor(route: Route) -> Refusal:
    return Refusal(
        reason=RefusalReason.QUALITY_FLOOR,
        status=503,
        message=f"No member of {route.name!r} reaches its quality_floor of {route.quality_floor:g}. "
        "Name a member, or ask the operator to lower it.",
        param="model",
        code="quality_floor",
    )


def _unsupported(members: Sequence[Member], request: RequestFacts) -> Refusal:
    """Names a field that no member serves, or else one that the first member lacks."""
    # In their order the plain thing is named before what is asked of it.
    wanted = [name for name in Feature if name in request.features]
    nowhere = [name for name in wanted if not any(_has_features(m, frozenset({name})) for m in members)]
    lacking = [name for name in wanted if name not in members[0].capabilities.features]
    first = nowhere[0] if nowhere else lacking[0]
    together = "" if nowhere else f" together with {', '.join(name for name in wanted if name != first)}"
    return Refusal(
        reason=RefusalReason.UNSUPPORTED,
        status=400,
        message=f"{first.value!r} is not supported by the models behind {request.model!r}{together}. "
        "Leave it out.",
        param=first.value,
        code="unsupported_parameter",
    )


def _too_long(members: Sequence[Member], request: RequestFacts) -> Refusal:
    longest = max(member.capabilities.context_tokens or 0 for member in members)
    return Refusal(
        reason=RefusalReason.TOO_LONG,
        status=400,
        message=f"The prompt has {request.prompt_tokens} tokens, and at most {longest - 1} fit the context "
        f"of {longest} with room for an answer. Shorten it.",
        param="messages" if request.endpoint is Endpoint.CHAT else "prompt",
        code="context_length_exceeded",
    )


def _none_left(request: RequestFacts) -> Refusal:
    return Refusal(
        reason=RefusalReason.NONE_LEFT,
        status=503,
        message=f"Every engine that could answer {request.model!r} failed just now. Try again.",
        code="no_engine_available",
    )
