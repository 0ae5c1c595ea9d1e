"""What members can do may change while they serve: a server comes up, restarts, or is another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loadwise.decision.facts import Capabilities
from loadwise.decision.limits import Limits
from loadwise.optimizer.fleet import Fleet
from loadwise.ports import JsonObject


def refresh(fleet: Fleet) -> None:
    """Every member's capabilities are those of its engines now."""
    for member_id in list(fleet):
        parts = fleet.parts(member_id)
        if not parts.engines:
            continue
        now = limited(common([e.capabilities for e in parts.engines.values()]), parts.member.limits)
        if now != parts.member.capabilities:
            fleet.update(member_id, capabilities=now)


def common(replicas: Sequence[Capabilities]) -> Capabilities:
    """What every replica can do: a request may go to any of them.

    Replicas of which nothing is known yet say nothing where others are known.
    """
    known = [each for each in replicas if each.features_known] or list(replicas)
    first, *others = known
    for other in others:
        first = _both(first, other)
    return first


def limited(can: Capabilities, limits: Limits) -> Capabilities:
    """The same within the operator's limit of the context."""
    most, known = limits.max_context_tokens, can.context_tokens
    if most is None or (known is not None and known <= most):
        return can
    return replace(can, context_tokens=most)


def shown(can: Capabilities) -> JsonObject:
    """What a member can do, for people; None is what nobody knows."""
    return {
        "features": sorted(can.features) if can.features_known else None,
        "context_tokens": can.context_tokens,
        "endpoints": None if can.endpoints is None else sorted(can.endpoints),
        "tokenizer": can.tokenizer_fingerprint,
        "adapters": None if can.adapters is None else sorted(can.adapters),
    }


def _both(one: Capabilities, other: Capabilities) -> Capabilities:
    contexts = [each for each in (one.context_tokens, other.context_tokens) if each is not None]
    same = one.tokenizer_fingerprint == other.tokenizer_fingerprint
    served = [each for each in (one.endpoints, other.endpoints) if each is not None]
    adapters = [each for each in (one.adapters, other.adapters) if each is not None]
    return replace(
        one,
        features=one.features & other.features,
        endpoints=frozenset.intersection(*served) if served else None,
        adapters=frozenset.intersection(*adapters) if adapters else None,
        context_tokens=min(contexts, default=None),
        tokenizer_fingerprint=one.tokenizer_fingerprint if same else None,
    )
