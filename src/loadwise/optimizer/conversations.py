"""Which member answers which conversation; the least recently used are forgotten."""

from __future__ import annotations

from collections import OrderedDict


class Conversations:
    """Conversation -> member, at most `size` of them, within tenant and route."""

    def __init__(self, size: int = 20_000) -> None:
        self._size = size
        self._members: OrderedDict[tuple[str, str, str], str] = OrderedDict()

    def member_of(self, tenant: str, route: str, conversation_id: str) -> str | None:
        """The member that answered the conversation last, or None."""
        key = (tenant, route, conversation_id)
        member = self._members.get(key)
        if member is not None:
            self._members.move_to_end(key)
        return member

    def keep(self, tenant: str, route: str, conversation_id: str, member_id: str) -> None:
        """The conversation belongs to the member from now on."""
        key = (tenant, route, conversation_id)
        self._members[key] = member_id
        self._members.move_to_end(key)
        if len(self._members) > self._size:
            self._members.popitem(last=False)

    def forget_member(self, member_id: str) -> None:
        """No conversation belongs to the member any more."""
        for key in [key for key, member in self._members.items() if member == member_id]:
            del self._members[key]

    def __len__(self) -> int:
        return len(self._members)
