"""The core's tuning rules for requests that the library's middleware sees as Python mappings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadwise.decision.facts import Capabilities, Endpoint, Feature, Member, Number, Policy, RequestFacts
from loadwise.decision.lengths import LengthSketch
from loadwise.decision.numbers import CHOSEN
from loadwise.decision.parameters import tune

# The library's caller knows its model's context; prompts are never cut here.
_LIBRARY = Member(
    member_id="library",
    replicas=(),
    capabilities=Capabilities(embedded=True, features=frozenset({Feature.TOP_K}), context_tokens=2**31 - 1),
)


def tuned(request: Any, strategy: Any, policy: Policy | None, *, left_alone: bool = False) -> Any:
    """A copy of the request with the strategy's parameters where the caller left them out.

    Explicit values stay, and everything of a request that is `left_alone`, but for ceilings. What is no
    mapping, and any request while no strategy is known or no policy is in force (stopped), stays as it is.
    """
    if strategy is None or policy is None or not isinstance(request, Mapping):
        return request
    facts = RequestFacts(
        request_id=str(request.get("request_id", "")),
        endpoint=Endpoint.CHAT if "messages" in request else Endpoint.COMPLETION,
        prompt_tokens=0,
        explicit=_explicit(request),
        features=_features(request),
        n=request["n"] if isinstance(request.get("n"), int) else 1,
    )
    changes = tune(policy, None if left_alone else strategy, facts, _LIBRARY, LengthSketch()).changes
    return {**request, **changes}


def _explicit(request: Mapping[str, Any]) -> dict[str, Number]:
    values = ((name, request.get(name)) for name in CHOSEN)
    return {name: value for name, value in values if isinstance(value, int | float)}


def _features(request: Mapping[str, Any]) -> frozenset[Feature]:
    named = (Feature.TOOLS, Feature.RESPONSE_FORMAT, Feature.REASONING_EFFORT)
    return frozenset(feature for feature in named if request.get(feature.value))
