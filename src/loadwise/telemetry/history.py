"""Histories in memory that never grow beyond their size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


class History(Generic[Entry]):
    """The last `size` entries, oldest first; keeps nothing while it is not `enabled`."""

    def __init__(self, size: int, *, enabled: bool = True) -> None:
        self._entries: deque[Entry] = deque(maxlen=size)
        self.enabled = enabled

    def add(self, entry: Entry) -> None:
        """Keeps the entry, at the cost of the oldest one when full."""
        if self.enabled:
            self._entries.append(entry)

    def resize(self, size: int, *, enabled: bool) -> None:
        """Holds at most `size` entries from now on, the newest; none when not enabled."""
        self.enabled = enabled
        self._entries = deque(self._entries if enabled else (), maxlen=size)

    def entries(self) -> list[Entry] | None:
        """All entries, oldest first, or None while nothing is kept."""
        return list(self._entries) if self.enabled else None

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
