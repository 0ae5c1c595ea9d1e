"""The operator's terms of each member: what was asked for of its limits, and what its answers cost."""

from __future__ import annotations

from collections.abc import Iterator
from math import floor

from loadwise.decision.admission import Entry
from loadwise.decision.facts import Member, Outcome, RequestFacts
from loadwise.decision.limits import EMPTY, Minute, Second, counted, settled, together, uncounted, used
from loadwise.decision.price import answer_tokens, spent
from loadwise.optimizer.shared_minutes import SharedMinutes
from loadwise.ports import JsonObject


class Terms:
    """The last minute of members with limits, and what was spent on those with a price, since the start."""

    def __init__(self) -> None:
        self._minutes: dict[str, Minute] = {}
        # What other processes ask for counts too, once they are known.
        self._shared: SharedMinutes | None = None
        self.spent: dict[str, float] = {}

    def share(self, shared: SharedMinutes) -> None:
        """From now on limits hold over every process that shares these."""
        self._shared = shared

    def close(self) -> None:
        """The other processes know that nothing is in flight here."""
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.close()

    def minute(self, member: Member, now_s: float) -> Minute:
        """What the member was asked for lately, by all processes."""
        own = self._minutes.get(member.member_id, EMPTY)
        if self._shared is None:
            return own
        return together(own, self._shared.minute(member.member_id, now_s))

    def elsewhere(self, member: Member, now_s: float) -> int:
        """Requests in flight on the member from other processes."""
        if self._shared is None or member.limits.max_concurrent_requests is None:
            return 0
        return self._shared.in_flight(member.member_id, now_s)

    def claim(self, entry: Entry, member: Member, tokens: int, in_flight: int, now_s: float) -> Entry:
        """The entry with what the member's limits depend on, the request itself being counted already.

        `in_flight` requests of this process are on the member, those that hang on a replica that is out too:
        they hold up no other, and count in what the operator allows all the same. Of two processes that ask
        for the last place at once each sees the other, and none goes beyond.
        """
        own = self._minutes.get(member.member_id, EMPTY)
        if member.limits.by_minute:
            claimed = counted(own, now_s, tokens)
            self._count(member, claimed, claimed[-1].at)
        self._hold(member, in_flight + 1)
        minute = own if self._shared is None else together(own, self._shared.minute(member.member_id, now_s))
        elsewhere = self.elsewhere(member, now_s) + in_flight - entry.pressure.in_flight
        return entry._replace(
            limits=member.limits, minute=minute, elsewhere=elsewhere, tokens=tokens, now_s=now_s
        )

    def unclaim(self, member: Member, tokens: int, in_flight: int) -> None:
        """The request just claimed for did not go to the member."""
        if member.limits.by_minute:
            claimed = self._minutes[member.member_id]
            self._count(member, uncounted(claimed, tokens), claimed[-1].at)
        self._hold(member, in_flight)

    def _count(self, member: Member, minute: Minute, at: int) -> None:
        """The member's own minute is this one, which differs within one second."""
        self._minutes[member.member_id] = minute
        if self._shared is not None:
            self._shared.put(member.member_id, next((s for s in minute if s.at == at), Second(at, 0, 0)))

    def _hold(self, member: Member, in_flight: int) -> None:
        if self._shared is not None and member.limits.max_concurrent_requests is not None:
            self._shared.hold(member.member_id, in_flight)

    def ended(
        self, member: Member, outcome: Outcome, expected_tokens: int, began_s: float, in_flight: int
    ) -> float | None:
        """What the attempt cost, None where it has no price; its tokens count as they were.

        `in_flight` requests are left on the member.
        """
        self._hold(member, in_flight)
        known = outcome.prompt_tokens, outcome.output_tokens
        if member.limits.by_minute and known != (None, None):
            more = sum(each or 0 for each in known) - expected_tokens
            own = self._minutes.get(member.member_id, EMPTY)
            self._count(member, settled(own, began_s, more), floor(began_s))
        cost = None if member.price is None else spent(member.price, outcome)
        if cost is not None:
            self.spent[member.member_id] = self.spent.get(member.member_id, 0.0) + cost
        return cost

    def shown(self, member: Member, now_s: float) -> JsonObject:
        """Tags, price and limits with what was spent and asked for; None where there is none."""
        price, limits = member.price, member.limits
        requests, tokens = used(self.minute(member, now_s), now_s)
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
        requests, tokens = used(self.minute(member, now_s), now_s)
        used_of = {
            "requests_per_minute": requests,
            "tokens_per_minute": tokens,
            "max_concurrent_requests": in_flight + self.elsewhere(member, now_s),
        }
        for name, value in used_of.items():
            most = getattr(member.limits, name)
            if most is not None:
                yield name, value / most


def expected_tokens(request: RequestFacts, usual_answer: float) -> int:
    """Whole tokens that a request is expected to need; a prompt of unknown length counts as none."""
    prompt = request.prompt_length
    return (prompt or 0) + round(answer_tokens(request, usual_answer))
