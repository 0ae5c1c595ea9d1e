"""What is in flight now, per member, pool and replica: O(1) to keep, exact at every request."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from loadwise.decision.facts import GENERATED, Member, Objectives
from loadwise.decision.quick import fact
from loadwise.optimizer.assignment import Assignment, Held
from loadwise.ports import Dispatch

# Times of waiting that are remembered for each replica.
WAITS: Final = 16


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
    # Tokens of prompt and answer by which it counts in its member's limits; 0 where there are none.
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
        # Output tokens that are expected still, by pool and by replica.
        self.owed_tokens: dict[str, float] = {}
        self.owed_by_replica: dict[str, float] = {}
        # Requests for generated text by replica and whether streamed: how many, and since when there is one.
        self._busy: dict[tuple[str, bool], tuple[int, float]] = {}
        # The latest such times that are over.
        self._waits: dict[tuple[str, bool], deque[tuple[float, float]]] = {}

    def open(self, entry: Open) -> None:
        """The dispatch counts as in flight."""
        dispatch, pool = entry.dispatch, entry.pool_id
        self._open[id(dispatch)] = entry
        for counts, name in self._counts(dispatch, pool):
            counts[name] = counts.get(name, 0) + 1
        for owed, _, name in self._owed(dispatch, pool):
            owed[name] = owed.get(name, 0.0) + entry.owed_tokens
        kind = dispatch.replica_id, dispatch.request.stream
        if dispatch.request.endpoint in GENERATED:
            count, since_s = self._busy.get(kind, (0, dispatch.started_s))
            self._busy[kind] = count + 1, since_s

    def close(self, dispatch: Dispatch, at_s: float | None = None) -> Open | None:
        """The entry of a dispatch that was in flight until then and no longer is; None when it was not."""
        entry = self._open.pop(id(dispatch), None)
        if entry is None:
            return None
        pool = entry.pool_id
        for counts, name in self._counts(dispatch, pool):
            counts[name] -= 1
            if not counts[name]:
                del counts[name]
        for owed, counts, name in self._owed(dispatch, pool):
            # Sums of floats drift: who has no request owes exactly nothing.
            left = owed.pop(name) - entry.owed_tokens
            if name in counts:
                owed[name] = max(0.0, left)
        kind = dispatch.replica_id, dispatch.request.stream
        if dispatch.request.endpoint in GENERATED:
            count, since_s = self._busy.pop(kind)
            if count > 1:
                self._busy[kind] = count - 1, since_s
            elif at_s is not None:
                self._waits.setdefault(kind, deque(maxlen=WAITS)).append((since_s, at_s))
        return entry

    def longest(self, of: Callable[[Dispatch], bool]) -> dict[tuple[str, str], tuple[float, int]]:
        """Of a replica's requests in flight that `of` takes, when the oldest began and the longest prompt.

        By member and replica id: monotonic seconds, and tokens.
        """
        found: dict[tuple[str, str], tuple[float, int]] = {}
        for dispatch in (entry.dispatch for entry in self._open.values()):
            if not of(dispatch):
                continue
            prompt = dispatch.request.prompt_length
            replica = dispatch.member_id, dispatch.replica_id
            began_s, tokens = found.get(replica, (dispatch.started_s, 0))
            found[replica] = min(began_s, dispatch.started_s), max(tokens, prompt or 0)
        return found

    def waited_s(self, replica_id: str, *, stream: bool, heard_s: float, now_s: float) -> float:
        """For how long some request of that kind waited since the replica was heard of, whoever left."""
        kind = replica_id, stream
        waits = list(self._waits.get(kind, ()))
        if kind in self._busy:
            waits.append((self._busy[kind][1], now_s))
        return sum(max(0.0, end_s - max(begin_s, heard_s)) for begin_s, end_s in waits)

    def by_block(self) -> Counter[int]:
        """Open requests by the block of time that they will count in."""
        found = (entry.assignment for entry in self._open.values())
        return Counter(each.block for each in found if each.block is not None and not each.suspended)

    def left_alone(self) -> Counter[str]:
        """Open requests of unoptimised blocks by route."""
        found = (entry.assignment for entry in self._open.values())
        return Counter(each.route for each in found if each.held is Held.CONTROL_BLOCK and each.route)

    def of_replicas(self, member: Member) -> dict[str, int]:
        """Requests in flight on each of a member's replicas."""
        return {each.replica_id: self.by_replica.get(each.replica_id, 0) for each in member.replicas}

    def _counts(self, dispatch: Dispatch, pool_id: str) -> tuple[tuple[dict[str, int], str], ...]:
        return (
            (self.by_member, dispatch.member_id),
            (self.by_pool, pool_id),
            (self.by_replica, dispatch.replica_id),
        )

    def _owed(
        self, dispatch: Dispatch, pool_id: str
    ) -> tuple[tuple[dict[str, float], dict[str, int], str], ...]:
        return (
            (self.owed_tokens, self.by_pool, pool_id),
            (self.owed_by_replica, self.by_replica, dispatch.replica_id),
        )

    def __len__(self) -> int:
        return len(self._open)
