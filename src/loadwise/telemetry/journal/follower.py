"""Follows a journal's rows: policies, routes, strategies, beliefs and the loop's state as they stood."""

from __future__ import annotations

from loadwise.decision import outcome, step
from loadwise.decision.admission import Entry
from loadwise.decision.beliefs import Belief
from loadwise.decision.candidates import Refusal
from loadwise.decision.facts import Policy, RequestFacts, Route
from loadwise.decision.question import Question
from loadwise.decision.step import Decision, Observation, State
from loadwise.decision.strategy import Strategy
from loadwise.telemetry.journal import records
from loadwise.telemetry.journal.records import Record


class Follower:
    """What the rows of one segment lead to; give it every row in order, then ask about the next."""

    def __init__(self) -> None:
        self.policies: dict[int, Policy] = {}
        self.routes: dict[int, Route] = {}
        self.strategies: dict[int, Strategy] = {}
        self.beliefs: dict[str, Belief] = {}
        self.state = State()

    def take(self, row: Record) -> None:
        """What a row introduces or teaches is known; `KeyError` where it rests on a row that is missing."""
        match row:
            case records.KeptPolicy():
                self.policies[row.number] = row.value
            case records.KeptRoute():
                self.routes[row.number] = row.value
            case records.KeptStrategy():
                self.strategies[row.number] = row.value
            case records.KeptBelief():
                self.beliefs[row.value.member_id] = row.value
            case records.KeptState():
                self.state = row.value
            case records.Ended() if row.learned and row.policy is not None:
                member_id = row.outcome.member_id
                before = self.beliefs[member_id]
                self.beliefs[member_id] = outcome.learn(self.policies[row.policy], before, row.outcome)
            case records.Step():
                self.stepped(row)

    def stepped(self, row: records.Step) -> Decision:
        """The step, made again; its beliefs and state are the present ones now."""
        self.state, decision = step.step(self.policies[row.policy], self.state, self.observation(row))
        for beliefs in decision.beliefs.values():
            self.beliefs.update(beliefs)
        return decision

    def observation(self, row: records.Step) -> Observation:
        """What a step saw; `KeyError` for a belief that is missing."""
        return records.with_beliefs(row.observation, row.routes, self.beliefs)

    def entry(self, row: records.KeptOut) -> Entry:
        """What an admission was decided from; `KeyError` where the policy is missing."""
        request = RequestFacts(request_id=row.request_id, n=row.n)
        return Entry(
            self.policies[row.policy], request, row.pressure, row.pool, row.own, row.objectives, row.expected,
            row.limits, row.minute, row.tokens, row.now_s, row.elsewhere,
        )  # fmt: skip

    def entry_of(self, row: records.Decided, let_in: records.LetIn) -> Entry:
        """What a choice's member was found to have room by; `KeyError` where a row is missing."""
        route = self.routes[row.route]
        choice = row.choice
        if isinstance(choice, Refusal):
            raise KeyError(row.request.request_id)
        member = next(member for member in route.members if member.member_id == choice.member_id)
        return Entry(
            self.policies[row.policy], row.request, let_in.pressure, let_in.pool, let_in.own,
            route.objectives, choice.expected if let_in.predicted else None,
            member.limits, let_in.minute, let_in.tokens, row.now_s, let_in.elsewhere,
        )  # fmt: skip

    def question(self, row: records.Decided) -> Question:
        """What a choice was made from; `KeyError` where a row that it rests on is missing."""
        return Question(
            policy=self.policies[row.policy],
            route=self.routes[row.route],
            request=row.request,
            beliefs=tuple([self.beliefs[name] for name in row.members]),
            pressures=row.pressures,
            strategy=None if row.strategy is None else self.strategies[row.strategy],
            draw=row.draw,
            now_s=row.now_s,
            remembered=row.remembered,
            excluded=row.excluded,
            control=row.control,
        )
