"""What never changes of the members a choice is made among: names, pools, contexts. Made once per route."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from loadwise.decision.beliefs import pool_of
from loadwise.decision.facts import Member, Route

Candidates = tuple[tuple[str, float], ...]
# Lineups kept for routes in use; a configuration change makes new routes.
KEPT: Final = 256


class Lineup:
    """Members in their order, with what every request would otherwise look up again; never changed."""

    __slots__ = (
        "_alone",
        "_certain",
        "context_tokens",
        "everyone",
        "ids",
        "ids_by_pool",
        "members",
        "pool_by_id",
        "pools",
        "route",
        "shared",
        "weights",
    )

    def __init__(self, route: Route, members: Sequence[Member]) -> None:
        self.route = route
        self.members = members
        self.ids = tuple([member.member_id for member in members])
        self.pools = tuple([pool_of(member) for member in members])
        self.pool_by_id = dict(zip(self.ids, self.pools, strict=True))
        self.weights = tuple([member.weight for member in members])
        self.everyone = (1.0,) * len(members)
        self.ids_by_pool = {
            pool: tuple([name for name, own in self.pool_by_id.items() if own == pool]) for pool in self.pools
        }
        # Pools of several members: what one adds, the others feel.
        self.shared = frozenset([pool for pool, ids in self.ids_by_pool.items() if len(ids) > 1])
        # What every member holds.
        self.context_tokens = min([member.capabilities.context_tokens or inf for member in members])
        self._certain: dict[int, Candidates] = {}
        self._alone: dict[str, Lineup] = {}

    def alone(self, member_id: str) -> Lineup:
        """The lineup of one of these members."""
        found = self._alone.get(member_id)
        if found is None:
            found = Lineup(self.route, (self.members[self.ids.index(member_id)],))
            self._alone[member_id] = found
        return found

    def certain(self, at: int) -> Candidates:
        """Every (member id, propensity) when the member at `at` is the only one with a share."""
        found = self._certain.get(at)
        if found is None:
            found = tuple([(name, 1.0 if place == at else 0.0) for place, name in enumerate(self.ids)])
            self._certain[at] = found
        return found


_LINEUPS: Final[dict[int, Lineup]] = {}


def lineup_of(route: Route) -> Lineup:
    """The lineup of a route's members, the same object for the same route."""
    # By identity: comparing routes would cost more than it saves. A lineup keeps its route alive, so
    # an identity found here is always that route's.
    found = _LINEUPS.get(id(route))
    if found is None:
        if len(_LINEUPS) >= KEPT:
            _LINEUPS.clear()
        found = _LINEUPS[id(route)] = Lineup(route, route.members)
    return found
