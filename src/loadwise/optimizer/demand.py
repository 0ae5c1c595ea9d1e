"""What is asked of each route: counted at every request, read by the control loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from loadwise.decision.facts import EnsembleStrategy, RequestFacts, Route
from loadwise.decision.lead import Asked, Crew
from loadwise.decision.lineup import lineup_of
from loadwise.decision.surge import NO_LIMIT, NO_SURGE, Limit, Surge, overflows, poured


class Demand:
    """Per route: requests that were free to be answered by any member, their prompts, and their troubles."""

    def __init__(self) -> None:
        self._requests: dict[str, int] = {}
        self._prompt_tokens: dict[str, float] = {}
        self._troubled: dict[str, dict[str, int]] = {}
        # By route and pool: what its lead bears. Replaced as a whole by the control loop.
        self.limits: Mapping[tuple[str, str], Limit] = {}
        self._surges: dict[tuple[str, str], Surge] = {}

    def ask(self, request: RequestFacts, now_s: float) -> bool:
        """The request counts, under the name that it asked for; whether it is more than a lead bears."""
        name = request.model
        prompt = request.prompt_length
        self._requests[name] = self._requests.get(name, 0) + 1
        self._prompt_tokens[name] = self._prompt_tokens.get(name, 0.0) + (prompt or 0.0)
        surging = False
        for crew, limit in self.limits.items():
            if crew[0] == name and limit is not NO_LIMIT:
                surge = self._surges[crew] = poured(self._surges.get(crew, NO_SURGE), limit, now_s)
                surging = surging or overflows(surge, limit)
        return surging

    def trouble(self, request: RequestFacts, member_id: str) -> None:
        """The member refused the request for lack of room, or answered it outside its objectives."""
        members = self._troubled.setdefault(request.model, {})
        members[member_id] = members.get(member_id, 0) + 1

    def crews(self, routes: Iterable[Route], places: Mapping[str, int | None]) -> tuple[Crew, ...]:
        """Per adaptive route the members that share a device, with what was asked of the route so far."""
        return tuple(
            Crew(
                route=route.name,
                pool_id=pool_id,
                places={name: places.get(name) for _, name in lineup.by_pool[pool_id]},
                default_member=route.default_member,
                asked=self._asked(route.name, pool_id),
            )
            for route in routes
            if route.strategy is EnsembleStrategy.ADAPTIVE
            for lineup in (lineup_of(route),)
            for pool_id in sorted(lineup.shared)
        )

    def _asked(self, route: str, pool_id: str) -> Asked:
        return Asked(
            requests=self._requests.get(route, 0),
            prompt_tokens=self._prompt_tokens.get(route, 0.0),
            troubled=dict(self._troubled.get(route, {})),
            surge=self._surges.get((route, pool_id), NO_SURGE),
        )
