"""3 tune: a strategy and a request become changes of the request's parameters, each with its reason.

An explicit value wins unless a ceiling stands below it. What the client left out is filled from the
strategy table on embedded members; elsewhere only `max_tokens`, and only where it can do no harm, and
`temperature` and `top_k` only with `tune_sampling` and a range. Prompts are never cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Final, NamedTuple

from loadwise.decision.facts import COMPLETIONS, Endpoint, Feature, Member, Number, Policy, RequestFacts
from loadwise.decision.lengths import LengthSketch
from loadwise.decision.numbers import INTEGERS, LIMITS, THINKING_BUDGETS, greedy
from loadwise.decision.quick import new
from loadwise.decision.strategy import Strategy

# Answers that ended by themselves before their p99 says anything.
ANSWERS_NEEDED: Final = 200
SHAPED: Final = frozenset({Feature.TOOLS, Feature.TOOL_CHOICE, Feature.RESPONSE_FORMAT})
# What only a model that thinks before it answers is asked.
THINKING: Final = frozenset(
    {
        Feature.REASONING_EFFORT,
        Feature.THINKING_TOKEN_BUDGET,
        Feature.THINKING_BUDGET,
        Feature.MAX_THINKING_TOKENS,
    }
)
SAMPLING: Final = ("temperature", "top_k")
# Named once: on its enumeration each look-up costs as much as the step around it.
_TOP_K: Final = Feature.TOP_K
_CHAT: Final = Endpoint.CHAT
_N: Final = Feature.N


class TuningReason(StrEnum):
    """Why parameters were changed, or were not."""

    STRATEGY = "strategy"
    CEILING = "ceiling"
    CEILING_AND_STRATEGY = "ceiling_and_strategy"
    EXPLICIT = "explicit"
    OFF = "off"
    STOPPED = "stopped"
    NOTHING_SAFE = "nothing_safe"


_STRATEGY: Final = TuningReason.STRATEGY


class Tuning(NamedTuple):
    """Fields to set in the body (token counts are ints), and why; `because` says it per field."""

    changes: Mapping[str, Number]
    reason: TuningReason
    because: Mapping[str, TuningReason]


def tune(
    policy: Policy, strategy: Strategy | None, request: RequestFacts, member: Member, answers: LengthSketch
) -> Tuning:
    """What to change of a request that `member` will answer under `strategy` (None: stopped)."""
    lowered = _ceilings(policy, request)
    skipped = _untouched(policy, strategy, request)
    if skipped is not None or strategy is None:
        return _tuning(lowered, {}, skipped or TuningReason.STOPPED)
    supplied = _supplied(policy, strategy, request, member, answers)
    if supplied and not lowered:
        return new(Tuning, (supplied, _STRATEGY, dict.fromkeys(supplied, _STRATEGY)))
    return _tuning(
        lowered, supplied, TuningReason.EXPLICIT if request.explicit else TuningReason.NOTHING_SAFE
    )


def as_bound(policy: Policy, request: RequestFacts) -> RequestFacts:
    """The request with what a ceiling makes of it: sampling that becomes greedy is another need."""
    if _N not in request.features or not greedy(_ceilings(policy, request)):
        return request
    return replace(request, features=request.features | {Feature.GREEDY_CHOICES})


def _untouched(policy: Policy, strategy: Strategy | None, request: RequestFacts) -> TuningReason | None:
    if request.off or not request.principal.optimize:
        return TuningReason.OFF
    if strategy is None or not policy.enable_dynamic_tuning:
        return TuningReason.STOPPED
    known = request.endpoint is _CHAT or request.endpoint in COMPLETIONS
    return None if known else TuningReason.NOTHING_SAFE


def _tuning(lowered: Mapping[str, Number], supplied: Mapping[str, Number], otherwise: TuningReason) -> Tuning:
    if not lowered:
        reason = _STRATEGY if supplied else otherwise
        return Tuning(supplied, reason, dict.fromkeys(supplied, _STRATEGY))
    because = dict.fromkeys(lowered, TuningReason.CEILING) | dict.fromkeys(supplied, TuningReason.STRATEGY)
    reason = TuningReason.CEILING_AND_STRATEGY if supplied else TuningReason.CEILING
    return Tuning({**lowered, **supplied}, reason, because)


def _ceiling(policy: Policy, request: RequestFacts, name: str) -> Number | None:
    own, general, lowest = request.principal.ceilings, policy.ceilings, None
    for table in (own, general) if own else (general,) if general else ():
        for key in LIMITS if name in LIMITS else (name,):
            value = table.get(key)
            if value is not None and (lowest is None or value < lowest):
                lowest = value
    return lowest


def _ceilings(policy: Policy, request: RequestFacts) -> dict[str, Number]:
    """Explicit values that lie above a ceiling, brought down to it; they bind also when tuning is off."""
    lowered: dict[str, Number] = {}
    if not policy.ceilings and not request.principal.ceilings:
        return lowered
    for name, value in request.explicit.items():
        ceiling = _ceiling(policy, request, name)
        if ceiling is None:
            continue
        unlimited = name == "top_k" and value <= 0
        if value > ceiling or (unlimited and ceiling > 0):
            lowered[name] = int(ceiling) if name in INTEGERS else ceiling
    return lowered


def _supplied(
    policy: Policy, strategy: Strategy, request: RequestFacts, member: Member, answers: LengthSketch
) -> dict[str, Number]:
    supplied: dict[str, Number] = {}
    wanted, explicit = strategy.parameters, request.explicit
    embedded = member.capabilities.embedded
    limit = _max_tokens(policy, int(wanted["max_tokens"]), request, member, answers)
    if limit is not None:
        supplied["max_tokens"] = limit
    for name in SAMPLING if embedded or policy.tune_sampling else ():
        if name in explicit or (name == "top_k" and not _takes_top_k(member)):
            continue
        if embedded or name in policy.ranges:
            supplied[name] = _bounded(policy, request, name, wanted[name])
    if request.n > 1 and greedy(supplied) and not _gives(member, Feature.GREEDY_CHOICES):
        del supplied["temperature"]
    return supplied


def _takes_top_k(member: Member) -> bool:
    return not member.capabilities.features_known or _gives(member, _TOP_K)


def _gives(member: Member, feature: Feature) -> bool:
    return feature in member.capabilities.features


def _bounded(policy: Policy, request: RequestFacts, name: str, value: Number) -> Number:
    """A supplied value inside the operator's range and under the ceiling."""
    allowed = policy.ranges.get(name) if policy.ranges else None
    if allowed is not None:
        value = min(max(value, allowed.low), allowed.high)
    ceiling = _ceiling(policy, request, name)
    if ceiling is not None and ceiling < value:
        value = ceiling
    return int(value) if name in INTEGERS else value


def _max_tokens(
    policy: Policy, wanted: int, request: RequestFacts, member: Member, answers: LengthSketch
) -> int | None:
    """A limit that no answer of this kind would have met, or None where none may be supplied."""
    if request.endpoint is not _CHAT or "max_tokens" in request.explicit:
        return None
    if "max_completion_tokens" in request.explicit or not _plain_answer(request, member):
        return None
    known = answers.total >= ANSWERS_NEEDED and answers.p99_tokens is not None
    left = _context_left(request, member)
    if left is None or not (known or member.capabilities.embedded):
        return None
    floor = (answers.p99_tokens or 1) if known else 1
    if request.explicit:
        floor = max(floor, int(request.explicit.get("min_tokens", 1)), 1)
    value = int(_bounded(policy, request, "max_tokens", wanted if wanted > floor else floor))
    if value > left:
        value = left
    return value if value >= floor else None


def _plain_answer(request: RequestFacts, member: Member) -> bool:
    """Whether an answer may end early without harm: no tools, no schema, one choice, no hidden thinking."""
    if request.n > 1 or (request.features and request.features & SHAPED):
        return False
    if THINKING.isdisjoint(member.capabilities.features) and THINKING.isdisjoint(request.features):
        return True
    return bool(request.explicit) and any(name in request.explicit for name in THINKING_BUDGETS)


def _context_left(request: RequestFacts, member: Member) -> int | None:
    prompt = request.prompt_tokens if request.prompt_tokens is not None else request.prompt_tokens_bound
    context = member.capabilities.context_tokens
    return None if prompt is None or context is None else context - prompt
