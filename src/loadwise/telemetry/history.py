"""Histories in memory that never grow beyond their size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

Entry = TypeVar("Entry")


def as_it_is(value: Any) -> Any:
    """The value."""
    return value


class History(Generic[Entry]):
    """The last `size` entries, oldest first; keeps nothing while it is not `enabled`.

    They are kept as `pack` makes them, and given as `unpack` makes them again.
    """

    def __init__(
        self,
        size: int,
        *,
        enabled: bool = True,
        pack: Callable[[Entry], Any] = as_it_is,
        unpack: Callable[[Any], Entry] = as_it_is,
    ) -> None:
        self._entries: deque[Any] = deque(maxlen=size)
        self._pack = pack
        self._unpack = unpack
        self.enabled = enabled

    def add(self, entry: Entry) -> None:
        """Keeps the entry, at the cost of the oldest one when full."""
        if self.enabled:
            self._entries.append(self._pack(entry))

    def resize(self, size: int, *, enabled: bool) -> None:
        """Holds at most `size` entries from now on, the newest; none when not enabled."""
        self.enabled = enabled
        self._entries = deque(self._entries if enabled else (), maxlen=size)

    def entries(self) -> list[Entry] | None:
        """All entries, oldest first, or None while nothing is kept."""
        return list(self) if self.enabled else None

    def __iter__(self) -> Iterator[Entry]:
        return map(self._unpack, self._entries)

    def __reversed__(self) -> Iterator[Entry]:
        return map(self._unpack, reversed(self._entries))

    def __len__(self) -> int:
        return len(self._entries)
