"""What never changes of the members a choice is made among: names, pools, contexts. Made once per route.

Beside it lies what was last worked out of their beliefs (`standings`): the same beliefs give the same again,
so that it may be kept here without a choice depending on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Final

from loadwise.decision.beliefs import Belief, pool_of
from loadwise.decision.facts import Member, Route
from loadwise.decision.standings import Standings, Terms, standings_of

Candidates = tuple[tuple[str, float], ...]
# Lineups kept for routes in use; a configuration change makes new routes.
KEPT: Final = 256


class Lineup:
    """Members in their order, with what every request would otherwise look up again; never changed."""

    __slots__ = (
        "_certain",
        "_narrowed",
        "_numbered",
        "_standings",
        "_terms",
        "by_pool",
        "context_tokens",
        "everyone",
        "ids",
        "members",
        "places",
        "pools",
        "route",
        "shared",
        "weights",
    )

    def __init__(self, route: Route, members: Sequence[Member]) -> None:
        self.route = route
        self.members = members
        self.ids = tuple([member.member_id for member in members])
        self.places = {name: place for place, name in enumerate(self.ids)}
        self.pools = tuple([pool_of(member) for member in members])
        self.weights = tuple([member.weight for member in members])
        self.everyone = (1.0,) * len(members)
        # By pool, its members with their places.
        self.by_pool: dict[str, list[tuple[int, str]]] = {pool: [] for pool in self.pools}
        for place, (member_id, pool) in enumerate(zip(self.ids, self.pools, strict=True)):
            self.by_pool[pool].append((place, member_id))
        # Pools of several members: what one adds, the others feel.
        self.shared = frozenset([pool for pool, members in self.by_pool.items() if len(members) > 1])
        # What every member holds.
        self.context_tokens = min([member.capabilities.context_tokens or inf for member in members])
        self._certain: dict[int, Candidates] = {}
        self._narrowed: dict[tuple[str, ...], Lineup] = {}
        self._numbered = list(enumerate(self.ids))
        self._terms = Terms(route.objectives, self.pools, self.weights)
        self._standings: Standings | None = None

    def member(self, member_id: str) -> Member:
        """The member of that name; `KeyError` where it is none of these."""
        return self.members[self.places[member_id]]

    def among(self, members: Sequence[Member]) -> Lineup:
        """The lineup of some of these members, which are those that can answer a request."""
        if len(members) == len(self.members):
            # All of them, also where a rule looked at each.
            return self
        ids = tuple([member.member_id for member in members])
        found = self._narrowed.get(ids)
        if found is None:
            if len(self._narrowed) >= KEPT:
                self._narrowed.clear()
            found = self._narrowed[ids] = Lineup(self.route, members)
        return found

    def standings(self, beliefs: Mapping[str, Belief], level: int | None) -> Standings:
        """What the beliefs say of these members at a level of load (None: at any)."""
        # Read once and replaced as a whole: other threads may ask for other beliefs meanwhile.
        found = self._standings
        if found is None or (level is not None and found.level != level):
            found = standings_of(self._terms, [beliefs[name] for name in self.ids], level or 0)
        known = found.known
        for at, name in self._numbered:
            belief = beliefs[name]
            if belief is not known[at]:
                found = found.after(at, belief)
        self._standings = found
        return found

    def shared_out(self, shares: Sequence[float]) -> Candidates:
        """Every (member id, propensity) with these shares."""
        return tuple([(name, shares[at]) for at, name in self._numbered])

    def certain(self, at: int) -> Candidates:
        """Every (member id, propensity) when the member at `at` is the only one with a share."""
        found = self._certain.get(at)
        if found is None:
            found = self.shared_out([1.0 if place == at else 0.0 for place in self.places.values()])
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
