"""The operator's terms of each member: what was asked for of its limits, and what its answers cost."""

from __future__ import annotations

from collections.abc import Iterator

from loadwise.decision.facts import Member, Outcome, RequestFacts
from loadwise.decision.limits import EMPTY, Minute, counted, settled, used
from loadwise.decision.price import answer_tokens, spent
from loadwise.ports import JsonObject


class Terms:
    """The last minute of members with limits, and what was spent on those with a price, since the start."""

    def __init__(self) -> None:
        self._minutes: dict[str, Minute] = {}
        self.spent: dict[str, float] = {}

    def minute(self, member: Member) -> Minute:
        """What the member was asked for lately."""
        return self._minutes.get(member.member_id, EMPTY)

    def began(self, member: Member, tokens: int, now_s: float) -> None:
        """A request that is expected to need so many tokens went to the member."""
        if member.limits.by_minute:
            self._minutes[member.member_id] = counted(self.minute(member), now_s, tokens)

    def ended(self, member: Member, outcome: Outcome, expected_tokens: int, began_s: float) -> float | None:
        """What the attempt cost, None where it has no price; its tokens count as they were."""
        known = outcome.prompt_tokens, outcome.output_tokens
        if member.limits.by_minute and known != (None, None):
            more = sum(each or 0 for each in known) - expected_tokens
            self._minutes[member.member_id] = settled(self.minute(member), began_s, more)
        cost = None if member.price is None else spent(member.price, outcome)
        if cost is not None:
            self.spent[member.member_id] = self.spent.get(member.member_id, 0.0) + cost
        return cost

    def shown(self, member: Member, now_s: float) -> JsonObject:
        """Tags, price and limits with what was spent and asked for; None where there is none."""
        price, limits = member.price, member.limits
        requests, tokens = used(self.minute(member), now_s)
        return {
            "tags": sorted(member.tags),
            "price": None
            if price is None
            else {name: getattr(price, name) for name in price.__dataclass_fields__},
            "spent": self.spent.get(member.member_id, 0.0) if price is not None else None,
            "limits": {name: getattr(limits, name) for name in limits.__dataclass_fields__},
            "last_minute": {"requests": requests, "tokens": tokens} if limits.by_minute else None,
        }

    def usage(self, member: Member, in_flight: int, now_s: float) -> Iterator[tuple[str, float]]:
        """Each limit that the member has, with the share of it that is used (0 to 1, rarely more)."""
        requests, tokens = used(self.minute(member), now_s)
        used_of = {
            "requests_per_minute": requests,
            "tokens_per_minute": tokens,
            "max_concurrent_requests": in_flight,
        }
        for name, value in used_of.items():
            most = getattr(member.limits, name)
            if most is not None:
                yield name, value / most


def expected_tokens(request: RequestFacts, usual_answer: float) -> int:
    """Whole tokens that a request is expected to need; a prompt of unknown length counts as none."""
    prompt = request.prompt_tokens if request.prompt_tokens is not None else request.prompt_tokens_bound
    return (prompt or 0) + round(answer_tokens(request, usual_answer))
