"""What `/v1/models` lists: routes and members, as far as whoever asks may use them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from loadwise.decision.facts import Member, Principal, Route
from loadwise.decision.tags import TagRule
from loadwise.optimizer.fleet import Fleet
from loadwise.ports import ModelCard


def cards(fleet: Fleet, created_s: int, principal: Principal) -> list[ModelCard]:
    """Routes that have a member for the principal, then the members that its tags allow."""
    rule = principal.tags
    members = [fleet.parts(name).member for name in fleet]
    listed = [_member(member, created_s) for member in members if rule.allows(member.tags)]
    return [*_routes(fleet.routes.values(), rule, created_s), *listed]


def _routes(routes: Iterable[Route], rule: TagRule, created_s: int) -> Iterator[ModelCard]:
    for route in routes:
        allowed = [member for member in route.members if rule.allows(member.tags)]
        if allowed or not rule:
            longest = max((member.capabilities.context_tokens or 0 for member in allowed), default=0)
            yield ModelCard(
                model_id=route.name, kind="route", created_s=created_s, context_tokens=longest or None
            )


def _member(member: Member, created_s: int) -> ModelCard:
    return ModelCard(
        model_id=member.member_id,
        kind="member",
        created_s=created_s,
        context_tokens=member.capabilities.context_tokens,
        quality=member.quality,
    )
