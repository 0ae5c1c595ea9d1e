"""What each conversation remembers of its member; the least recently used are forgotten."""

from __future__ import annotations

from collections import OrderedDict

from loadwise.decision.choices import Remembered


class Conversations:
    """Conversation -> its memory, at most `size` of them, within tenant and route."""

    def __init__(self, size: int = 20_000) -> None:
        self._size = size
        self._kept: OrderedDict[tuple[str, str, str], Remembered] = OrderedDict()

    def recall(self, tenant: str, route: str, conversation_id: str) -> Remembered | None:
        """What the conversation remembers, or None."""
        key = (tenant, route, conversation_id)
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def keep(self, tenant: str, route: str, conversation_id: str, memory: Remembered) -> None:
        """The conversation remembers this from now on."""
        key = (tenant, route, conversation_id)
        self._kept[key] = memory
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def forget_member(self, member_id: str) -> None:
        """No conversation remembers the member any more."""
        for key, memory in list(self._kept.items()):
            if memory.member_id == member_id:
                del self._kept[key]
            elif memory.left == member_id:
                self._kept[key] = Remembered(member_id=memory.member_id, returned=memory.returned)

    def __len__(self) -> int:
        return len(self._kept)
