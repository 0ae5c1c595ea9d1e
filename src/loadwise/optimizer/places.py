"""How many requests members and pools can hold, refreshed each second and only read by requests."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from loadwise.decision.admission import PoolLimit
from loadwise.decision.facts import EngineReading, Member, Replica
from loadwise.optimizer.sensing import EngineReadings

UNLIMITED = PoolLimit()


class Places:
    """Per member and per pool: places that run, places that wait, speed; unlimited where unknown."""

    def __init__(self) -> None:
        self.capacity: dict[str, int | None] = {}
        self.waiting: dict[str, int | None] = {}
        self.members: dict[str, PoolLimit] = {}
        self.pools: dict[str, PoolLimit] = {}

    def refresh(self, members: Sequence[Member], readings: EngineReadings, out: Collection[str] = ()) -> None:
        """Everything follows from the latest readings, and from what replicas declare before.

        Replicas that are `out` hold nothing, while another of their member serves.
        """
        pools: dict[str, list[tuple[Replica, EngineReading | None]]] = {}
        for member in members:
            serving = [r for r in member.replicas if r.replica_id not in out] or member.replicas
            pairs = [(replica, readings[replica.replica_id]) for replica in serving]
            limit = _limit(pairs)
            self.members[member.member_id] = limit
            self.capacity[member.member_id] = limit.running
            self.waiting[member.member_id] = _waiting(pairs)
            for replica, reading in pairs:
                pools.setdefault(replica.pool_id, []).append((replica, reading))
        self.pools = {pool_id: _limit(pairs) for pool_id, pairs in pools.items()}

    def limits(self, member: Member) -> tuple[PoolLimit, PoolLimit]:
        """What the member's pool, and the member itself, can hold."""
        pool = self.pools.get(member.replicas[0].pool_id, UNLIMITED)
        return pool, self.members.get(member.member_id, UNLIMITED)


def _limit(pairs: Sequence[tuple[Replica, EngineReading | None]]) -> PoolLimit:
    running = [_capacity(replica, reading) for replica, reading in pairs]
    queues = [0 if reading is None else reading.queue_capacity_requests for _, reading in pairs]
    # One replica whose places are unknown makes the whole unlimited: nothing is refused on a guess.
    if None in running or None in queues or any(reading is None for _, reading in pairs):
        return UNLIMITED
    speeds = [reading.output_tokens_per_s or 0.0 for _, reading in pairs if reading is not None]
    return PoolLimit(
        running=sum(places or 0 for places in running),
        waiting=sum(places or 0 for places in queues),
        output_tokens_per_s=sum(speeds) or None,
    )


def _capacity(replica: Replica, reading: EngineReading | None) -> int | None:
    read = None if reading is None else reading.capacity_requests
    return replica.capacity_requests if read is None else read


def _waiting(pairs: Sequence[tuple[Replica, EngineReading | None]]) -> int | None:
    known = [r.waiting_requests for _, r in pairs if r is not None and r.waiting_requests is not None]
    return sum(known) if known else None
