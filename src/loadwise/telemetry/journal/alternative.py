"""The decisions of a journal under another configuration: what would have been chosen instead.

What was observed stays as it was written: beliefs, queues and outcomes are those of the configuration that
was in force, so differences show what the other one would do first, not what would follow from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from loadwise.decision import step
from loadwise.decision.candidates import Refusal
from loadwise.decision.choices import Choice
from loadwise.decision.facts import Objectives, Policy, Route
from loadwise.decision.question import Question, answer, tuned
from loadwise.decision.step import State
from loadwise.decision.strategy import Strategy, for_route
from loadwise.ports import JsonObject
from loadwise.settings import OptimizationConfig, RouteSettings
from loadwise.telemetry.journal import records
from loadwise.telemetry.journal.follower import Follower
from loadwise.telemetry.journal.reader import Batch
from loadwise.telemetry.journal.replay import Replayed, followed


class Alternative:
    """Another configuration that turns the same loop: give it every step, then ask it the questions."""

    def __init__(self, config: OptimizationConfig, routes: Mapping[str, RouteSettings] | None = None) -> None:
        self.policy: Policy = config.policy()
        self._config = config
        self._routes = routes or {}
        self._known: dict[int, tuple[Route, Route]] = {}
        self._state = State()
        self._strategies: dict[str, Strategy] = {}

    def stepped(self, follower: Follower, row: records.Step) -> dict[str, Strategy]:
        """The strategies by pool after a step of the journal."""
        observation = follower.observation(row)
        self._state, decision = step.step(self.policy, self._state, observation)
        self._strategies = {name: pool.strategy for name, pool in decision.pools.items()}
        return self._strategies

    def asked(self, question: Question) -> Question:
        """The question as this configuration would have put it; stopped stays stopped."""
        route = self._route(question.route)
        strategy = question.strategy
        if strategy is not None:
            strategy = for_route(route, self._strategies) or strategy
        return question._replace(policy=self.policy, route=route, strategy=strategy)

    def _route(self, route: Route) -> Route:
        known = self._known.get(id(route))
        if known is None:
            # The route is kept, so that its identity is not used again.
            known = self._known[id(route)] = (route, self._changed(route))
        return known[1]

    def _changed(self, route: Route) -> Route:
        config, own = self._config, self._routes.get(route.name)
        floor = None if own is None else own.quality_floor
        objectives = (own and own.objectives) or config.objectives
        wanted = (own and own.default_member) or config.default_member
        members = {member.member_id for member in route.members}
        return replace(
            route,
            strategy=(own and own.ensemble_strategy) or config.ensemble_strategy,
            quality_floor=config.quality_floor if floor is None else floor,
            allow_degrade=config.allow_degrade,
            objectives=Objectives(**objectives.model_dump()),
            default_member=wanted if wanted in members else route.default_member,
        )


@dataclass(slots=True, kw_only=True)
class Compared:
    """How often another configuration decides differently, and how."""

    decisions: int = 0
    same_member: int = 0
    same_tuning: int = 0
    # (written, other): how often. A refusal counts as the member "refused".
    members: Counter[tuple[str, str]] = field(default_factory=Counter)
    strategies: Counter[tuple[str, str]] = field(default_factory=Counter)
    # Mean propensities: what the configurations would do on average, without chance.
    written_shares: Counter[str] = field(default_factory=Counter)
    other_shares: Counter[str] = field(default_factory=Counter)
    replayed: Replayed = field(default_factory=Replayed)

    def as_json(self) -> JsonObject:
        """Counts of differences, and the mean share of each member under both."""
        total = max(1, self.decisions)
        names = sorted({*self.written_shares, *self.other_shares})
        return {
            "decisions": self.decisions,
            "same_member": self.same_member,
            "same_tuning": self.same_tuning,
            "shares": {
                name: {"written": self.written_shares[name] / total, "other": self.other_shares[name] / total}
                for name in names
            },
            "members": _pairs(self.members),
            "strategies": _pairs(self.strategies),
            "dropped": self.replayed.dropped,
            "skipped": self.replayed.skipped,
            "gaps": self.replayed.gaps,
        }


def compare(batches: Iterable[Batch], other: Alternative) -> Compared:
    """Every decision of a journal beside what another configuration would have decided."""
    found = Compared()
    for follower, row in followed(batches, found.replayed):
        match row:
            case records.Decided():
                _count(found, follower.question(row), row, other)
            case records.Step():
                after = other.stepped(follower, row)
                for pool, summary in row.summary.pools.items():
                    name = after[pool].name if pool in after else summary.strategy.name
                    found.strategies[summary.strategy.name.value, name.value] += 1
        follower.take(row)
    return found


def _count(found: Compared, question: Question, row: records.Decided, other: Alternative) -> None:
    asked = other.asked(question)
    written, chosen = row.choice, answer(asked)
    found.decisions += 1
    pair = _name(written), _name(chosen)
    found.members[pair] += 1
    found.same_member += pair[0] == pair[1]
    _share(found.written_shares, written)
    _share(found.other_shares, chosen)
    if isinstance(written, Refusal) or isinstance(chosen, Refusal):
        found.same_tuning += isinstance(written, Refusal) and isinstance(chosen, Refusal)
    else:
        untouched = row.dispatched is not None and row.dispatched.untouched
        pairs = ((question, written), (asked, chosen))
        before, after = (tuned(*pair, untouched=untouched).changes for pair in pairs)
        found.same_tuning += before == after


def _name(choice: Choice | Refusal) -> str:
    return "refused" if isinstance(choice, Refusal) else choice.member_id


def _share(shares: Counter[str], choice: Choice | Refusal) -> None:
    if isinstance(choice, Refusal):
        shares["refused"] += 1
        return
    for name, share in choice.candidates:
        shares[name] += share  # type: ignore[assignment]


def _pairs(counts: Counter[tuple[str, str]]) -> list[JsonObject]:
    return [
        {"written": written, "other": other, "count": count}
        for (written, other), count in counts.most_common()
        if written != other
    ]
