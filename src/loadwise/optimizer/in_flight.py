"""What is in flight now, per member, pool and replica: O(1) to keep, exact at every request."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from loadwise.ports import Dispatch


@dataclass(frozen=True, slots=True)
class Open:
    """A dispatched request that has not ended."""

    dispatch: Dispatch
    pool_id: str
    owed_tokens: float


class InFlight:
    """Open dispatches. Each is closed exactly once; closing it again changes nothing."""

    def __init__(self) -> None:
        # By identity: a retried request has several dispatches with one request id. The entry
        # keeps its dispatch alive, so an identity is never used twice at a time.
        self._open: dict[int, Open] = {}
        self.by_member: Counter[str] = Counter()
        self.by_pool: Counter[str] = Counter()
        self.by_replica: Counter[str] = Counter()
        self.owed_tokens: dict[str, float] = {}

    def open(self, dispatch: Dispatch, pool_id: str, owed_tokens: float) -> None:
        """The dispatch counts as in flight."""
        self._open[id(dispatch)] = Open(dispatch, pool_id, owed_tokens)
        self.by_member[dispatch.member_id] += 1
        self.by_pool[pool_id] += 1
        self.by_replica[dispatch.replica_id] += 1
        self.owed_tokens[pool_id] = self.owed_tokens.get(pool_id, 0.0) + owed_tokens

    def close(self, dispatch: Dispatch) -> bool:
        """True when the dispatch was in flight and no longer is; False when it was not."""
        entry = self._open.pop(id(dispatch), None)
        if entry is None:
            return False
        _less(self.by_member, dispatch.member_id)
        _less(self.by_pool, entry.pool_id)
        _less(self.by_replica, dispatch.replica_id)
        # Sums of floats drift: an empty pool owes exactly nothing.
        left = self.owed_tokens[entry.pool_id] - entry.owed_tokens
        self.owed_tokens[entry.pool_id] = max(0.0, left) if self.by_pool[entry.pool_id] else 0.0
        return True

    def __len__(self) -> int:
        return len(self._open)


def _less(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
