"""What runs on each device at this moment: the work there, and what it leaves room for."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final, NamedTuple

from loadwise.decision.beliefs import BATCH_START
from loadwise.decision.facts import MemberPressure
from loadwise.decision.lineup import Lineup
from loadwise.decision.quick import new
from loadwise.decision.standings import Standings

# What adaptive fills of the objective per further token; the rest is room for what arrives while an answer is
# made.
OUTPUT_TOKEN_TARGET: Final = 0.7
# A cheaper member of the pool with this much of its places taken is needed for overflow: dearer ones pause.
RELIEF_TARGET: Final = 0.5


class Crowd(NamedTuple):
    """What those in flight on one pool leave room for."""

    # Work at which the first member with requests in flight would pass its target.
    room: float = inf
    # Cost of the cheapest member whose places fill up.
    pressed_cost: float = inf
    # How much of the targets recent misses leave: 1 below 1 %, three tenths from 15 % on.
    care: float = 1.0


class Crowds:
    """The pools of a route, looked at when they are asked for."""

    __slots__ = ("_busy", "_found", "_lineup", "_pressed", "_standings", "_works")

    def __init__(
        self, lineup: Lineup, standings: Standings, pressed: Sequence[MemberPressure | None]
    ) -> None:
        """All of a route's members, what is believed of them, and their queues (None: not known)."""
        self._lineup, self._standings, self._pressed = lineup, standings, pressed
        self._works: dict[str, float] = {}
        # By pool, the members with requests in flight: their places and queues.
        self._busy: dict[str, list[tuple[int, MemberPressure]]] = {}
        self._found: dict[str, Crowd] = {}

    def work(self, pool: str) -> float:
        """Work on a pool: requests in flight, this route's weighed by their cost and others' by one each."""
        found = self._works.get(pool)
        if found is None:
            found = self._works[pool] = self._work(pool)
        return found

    def _work(self, pool: str) -> float:
        busy: list[tuple[int, MemberPressure]] = []
        work, ours, everyones = 0.0, 0, 0
        rows, pressed = self._standings.rows, self._pressed
        for at, _ in self._lineup.by_pool[pool]:
            pressure = pressed[at]
            if pressure is None:
                continue
            # Every member of a pool says the same of it.
            everyones, in_flight = pressure.pool_in_flight, pressure.in_flight
            if in_flight:
                places = pressure.capacity_requests
                # Who waits for a place costs the device nothing yet.
                running = in_flight if places is None or in_flight < places else places
                work += (running + BATCH_START) * rows[at][2]
                ours += in_flight
                busy.append((at, pressure))
        self._busy[pool] = busy
        return work + (everyones - ours) if everyones > ours else work

    def crowd(self, pool: str, target: float) -> Crowd:
        """What those in flight on a pool leave room for, where so much of the targets is allowed."""
        found = self._found.get(pool)
        if found is None:
            found = self._found[pool] = self._crowd(pool, target * OUTPUT_TOKEN_TARGET)
        return found

    def _crowd(self, pool: str, allowed: float) -> Crowd:
        self.work(pool)
        room = pressed_cost = inf
        for at, pressure in self._busy[pool]:
            _, _, cost, _, _, _, base, slope = self._standings.rows[at]
            if slope > 0.0 and (most := (allowed - base) / slope) < room:
                room = most
            places = pressure.capacity_requests
            if places is not None and pressure.in_flight >= RELIEF_TARGET * places and cost < pressed_cost:
                pressed_cost = cost
        return new(Crowd, (room, pressed_cost, self._care(pool)))

    def _care(self, pool: str) -> float:
        if not self._standings.late:
            return 1.0
        members = [self._standings.known[at] for at, _ in self._lineup.by_pool[pool]]
        misses = sum([belief.recent_misses for belief in members])
        missed = misses / (sum([belief.recent for belief in members]) + 10.0)
        return max(0.3, 1.0 - 5.0 * max(0.0, missed - 0.01))
