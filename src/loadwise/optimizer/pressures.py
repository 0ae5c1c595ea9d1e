"""What the requests in flight weigh on members, as it is when a request is decided."""

from __future__ import annotations

from loadwise.decision.facts import MemberPressure, Route
from loadwise.decision.lineup import lineup_of
from loadwise.decision.replicas import outs
from loadwise.optimizer.ensemble_manager import ModelEnsembleManager
from loadwise.optimizer.in_flight import InFlight
from loadwise.optimizer.places import Places


class Pressures:
    """Reads the live counts; keeps nothing."""

    def __init__(self, ensemble: ModelEnsembleManager, in_flight: InFlight, places: Places) -> None:
        self._ensemble = ensemble
        self._in_flight = in_flight
        self._places = places

    def of_route(self, route: Route) -> dict[str, MemberPressure]:
        """Of members with requests in flight, and of one per pool: the others' would say nothing more."""
        busy, lineup, found = self._in_flight.by_member, lineup_of(route), {}
        for pool_id, members in lineup.by_pool.items():
            first = members[0][1]
            for _, member_id in members:
                if member_id is first or member_id in busy:
                    found[member_id] = self.of_member(member_id, pool_id)
        return found

    def of_member(self, member_id: str, pool_id: str) -> MemberPressure:
        """What the member's requests weigh; those that hang on a replica that is out hold up no other."""
        counts, places = self._in_flight, self._places
        out = outs(self._ensemble.beliefs[member_id].replicas)
        hanging = sum([counts.by_replica.get(name, 0) for name in out]) if out else 0
        owed = sum([counts.owed_by_replica.get(name, 0.0) for name in out]) if out else 0.0
        return MemberPressure(
            member_id=member_id,
            in_flight=max(0, counts.by_member.get(member_id, 0) - hanging),
            pool_in_flight=max(0, counts.by_pool.get(pool_id, 0) - hanging),
            pool_owed_tokens=max(0.0, counts.owed_tokens.get(pool_id, 0.0) - owed),
            capacity_requests=places.capacity.get(member_id),
            waiting_requests=places.waiting.get(member_id),
        )
