"""What is in flight now, per member, pool and replica: O(1) to keep, exact at every request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from loadwise.decision.facts import Member, Objectives
from loadwise.decision.quick import fact
from loadwise.optimizer.assignment import Assignment
from loadwise.ports import Dispatch


@fact(frozen=True, slots=True)
class Open:
    """A dispatched request that has not ended, with what is needed when it does."""

    dispatch: Dispatch
    pool_id: str
    # Output tokens that it is expected to make.
    owed_tokens: float
    objectives: Objectives
    # What experiments and rollout made of it.
    assignment: Assignment
    # Tokens of prompt and answer that it was expected to need.
    expected_tokens: int = 0


class InFlight:
    """Open dispatches. Each is closed exactly once; closing it again changes nothing."""

    def __init__(self) -> None:
        # By identity: a retried request has several dispatches with one request id. The entry
        # keeps its dispatch alive, so an identity is never used twice at a time.
        self._open: dict[int, Open] = {}
        self.by_member: dict[str, int] = {}
        self.by_pool: dict[str, int] = {}
        self.by_replica: dict[str, int] = {}
        self.owed_tokens: dict[str, float] = {}

    def open(self, entry: Open) -> None:
        """The dispatch counts as in flight."""
        dispatch, pool = entry.dispatch, entry.pool_id
        self._open[id(dispatch)] = entry
        for counts, name in self._counts(dispatch, pool):
            counts[name] = counts.get(name, 0) + 1
        self.owed_tokens[pool] = self.owed_tokens.get(pool, 0.0) + entry.owed_tokens

    def close(self, dispatch: Dispatch) -> Open | None:
        """The entry of a dispatch that was in flight and no longer is; None when it was not."""
        entry = self._open.pop(id(dispatch), None)
        if entry is None:
            return None
        pool = entry.pool_id
        for counts, name in self._counts(dispatch, pool):
            counts[name] -= 1
            if not counts[name]:
                del counts[name]
        # Sums of floats drift: an empty pool owes exactly nothing.
        left = self.owed_tokens.pop(pool) - entry.owed_tokens
        if pool in self.by_pool:
            self.owed_tokens[pool] = max(0.0, left)
        return entry

    def longest(self, of: Callable[[Dispatch], bool]) -> dict[str, tuple[float, int]]:
        """Of each member's requests in flight that `of` takes, when the oldest began and the longest prompt.

        Monotonic seconds, and tokens.
        """
        found: dict[str, tuple[float, int]] = {}
        for dispatch in (entry.dispatch for entry in self._open.values()):
            if not of(dispatch):
                continue
            asked = dispatch.request
            prompt = asked.prompt_tokens if asked.prompt_tokens is not None else asked.prompt_tokens_bound
            began_s, tokens = found.get(dispatch.member_id, (dispatch.started_s, 0))
            found[dispatch.member_id] = min(began_s, dispatch.started_s), max(tokens, prompt or 0)
        return found

    def by_block(self) -> Counter[int]:
        """Open requests by the block of time that they will count in."""
        found = (entry.assignment for entry in self._open.values())
        return Counter(each.block for each in found if each.block is not None and not each.suspended)

    def of_replicas(self, member: Member) -> dict[str, int]:
        """Requests in flight on each of a member's replicas."""
        return {each.replica_id: self.by_replica.get(each.replica_id, 0) for each in member.replicas}

    def _counts(self, dispatch: Dispatch, pool_id: str) -> tuple[tuple[dict[str, int], str], ...]:
        return (
            (self.by_member, dispatch.member_id),
            (self.by_pool, pool_id),
            (self.by_replica, dispatch.replica_id),
        )

    def __len__(self) -> int:
        return len(self._open)
