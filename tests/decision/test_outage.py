"""Where nobody answers, requests are refused but for a probe now and then; where anybody does, none is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.beliefs import Belief, Health
from loadwise.decision.candidates import Refusal, RefusalReason
from loadwise.decision.choices import Choice, ChoiceReason
from loadwise.decision.ensemble import select
from loadwise.decision.facts import MemberPressure, Replica, RequestFacts, Route
from loadwise.decision.health import review
from loadwise.decision.outage import (
    FIRST_PROBE_S,
    PROBE_MOST_S,
    fails,
    faults_needed,
    wait_s,
)
from loadwise.decision.outcome import learn
from loadwise.decision.replicas import outs, pick_replica
from loadwise.decision.rotation import FAULTS_IN_A_ROW, HealthReason

from .build import POLICY, at_load, failed, fresh, member, request, route, succeeded

LOW = at_load(0.1)
# Who answers at that time: member and replica.
Answers = Callable[[str, float], bool]


def members_of(*replicas: int) -> Route:
    """Members a, b, ..., each with so many replicas on a device of its own."""
    found = []
    for name, count in zip("abcd", replicas, strict=False):
        each = [Replica(replica_id=f"{name}/{at}", pool_id=name) for at in range(count)]
        found.append(member(name, replicas=tuple(each), quality=1.0, relative_cost=1.0))
    return route(members=tuple(found), default_member="a")


@dataclass
class Service:
    """Members whose answers end at once, as a gateway with one retry meets them."""

    route: Route
    answers: Answers
    chance: Random = field(default_factory=lambda: Random(1))
    beliefs: dict[str, Belief] = field(init=False)
    attempts: int = 0
    refused: int = 0
    answered: int = 0
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.beliefs = fresh(self.route)

    def ask(self, now_s: float, asking: RequestFacts | None = None, tries: int = 2) -> bool | None:
        """Whether a request is answered; None where it is refused before anybody was asked."""
        tried: frozenset[str] = frozenset()
        for _ in range(tries):
            choice = self.choice(now_s, asking or request(), tried)
            if isinstance(choice, Refusal):
                self.refused += not tried
                return False if tried else None
            replica = self._replica(choice, tried, now_s)
            if self._tried(choice.member_id, replica, now_s):
                return True
            tried |= {replica}
        return False

    def choice(
        self,
        now_s: float,
        asking: RequestFacts,
        tried: frozenset[str] = frozenset(),
        pressures: Mapping[str, MemberPressure] | None = None,
    ) -> Choice | Refusal:
        idle = {
            m.member_id: MemberPressure(member_id=m.member_id, in_flight=0, pool_in_flight=0)
            for m in self.route.members
        }
        return select(
            POLICY, self.route, asking, self.beliefs, idle if pressures is None else pressures, LOW,
            self.chance.random(), now_s, excluded=tried,
        )  # fmt: skip

    def _replica(self, choice: Choice, tried: frozenset[str], now_s: float) -> str:
        chosen = next(m for m in self.route.members if m.member_id == choice.member_id)
        standings = self.beliefs[choice.member_id].replicas
        replica = pick_replica(chosen, {}, self.chance.random(), tried, standings, now_s)
        assert replica is not None
        return replica

    def _tried(self, name: str, replica: str, now_s: float) -> bool:
        answers = self.answers(replica, now_s)
        ended = succeeded(name, now_s) if answers else failed(name, now_s)
        self.attempts += 1
        self.asked.append(replica)
        self.answered += answers
        self.beliefs[name] = learn(POLICY, self.beliefs[name], replace(ended, replica_id=replica))
        self.look(now_s)
        return answers

    def look(self, now_s: float) -> list[tuple[str, Health, HealthReason]]:
        changes = review(POLICY, self.beliefs, now_s)
        self.beliefs.update((change.member_id, change.belief) for change in changes)
        return [(change.subject, change.health, change.reason) for change in changes]


def nobody(replica: str, now_s: float) -> bool:
    return False


def only(name: str, replica: str, now_s: float) -> bool:
    return replica == name


# --- where nobody answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", [(1,), (2,), (3,), (1, 1), (2, 2), (1, 3, 1)])
@pytest.mark.parametrize("rate", [0.5, 4.0, 100.0])
def test_attempts_are_those_that_show_it_and_a_probe_every_few_seconds(
    replicas: tuple[int, ...], rate: float
) -> None:
    service, seconds = Service(members_of(*replicas), nobody), 60.0
    for number in range(int(seconds * rate)):
        service.ask(number / rate)
    shown = (FAULTS_IN_A_ROW + 1) * len(replicas)
    assert service.attempts <= shown + 4 + seconds / PROBE_MOST_S
    assert service.attempts + service.refused >= int(seconds * rate)


@pytest.mark.parametrize("rate", [2.0, 10.0])
@pytest.mark.parametrize("replicas", [(1,), (2,), (3,), (1, 1), (2, 3)])
def test_it_is_back_within_seconds_once_any_of_them_answers(replicas: tuple[int, ...], rate: float) -> None:
    names = [r.replica_id for m in members_of(*replicas).members for r in m.replicas]
    for back in names:
        service = Service(members_of(*replicas), nobody)
        for number in range(int(40.0 * rate)):
            service.ask(number / rate)
        service.answers = partial(only, back)
        seen = [service.ask(40.0 + number / rate) for number in range(int(50.0 * rate))]
        # Each has its turn, and every request comes a little after a probe is due.
        assert seen.index(True) / rate <= (len(names) + 1) * (PROBE_MOST_S + 1.0 / rate)
        # From then on the others are found at fault by a few attempts each; nobody is refused any more.
        assert None not in seen[seen.index(True) :]
        assert seen[-20:].count(True) >= 15


def test_a_probe_that_fails_is_not_tried_elsewhere() -> None:
    service = Service(members_of(2, 2), nobody)
    while service.ask(0.0) is not None:
        pass
    before = service.attempts
    assert service.ask(10.0) is False
    assert service.attempts == before + 1


def test_members_and_replicas_are_probed_in_turn() -> None:
    service = Service(members_of(2, 1, 2), nobody)
    for number in range(400):
        service.ask(number * 0.5)
    counts = Counter(service.asked[-12:])
    assert counts == {"a/0": 2, "a/1": 2, "b/0": 4, "c/0": 2, "c/1": 2}


def test_the_refusal_says_why_and_when_to_come_back() -> None:
    service = Service(members_of(1), nobody)
    while service.ask(0.0) is not None:
        pass
    refusal = service.choice(0.1, request())
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.status, refusal.code) == (
        RefusalReason.NOBODY_ANSWERS, 503, "nobody_answers",
    )  # fmt: skip
    assert refusal.retry_after_s == 1.0
    assert f"the last {FAULTS_IN_A_ROW} attempts" in refusal.message


def test_the_one_that_is_let_in_is_a_probe_and_one_that_is_left_alone_stays_so() -> None:
    service = Service(members_of(1, 1), nobody)
    for at in range(40):
        service.ask(float(at))
    probe, off = (service.choice(99.0, request(off=off)) for off in (False, True))
    assert isinstance(probe, Choice)
    assert isinstance(off, Choice)
    assert (probe.reason, probe.propensity) == (ChoiceReason.PROBING, 1.0)
    assert off.reason is ChoiceReason.OFF


def test_who_names_a_member_that_fails_is_refused_and_the_others_serve() -> None:
    service = Service(members_of(1, 1), lambda replica, _: replica == "b/0")
    named = request(model="a")
    while service.ask(0.0, named) is not None:
        pass
    assert service.ask(0.1, named) is None
    assert all(service.ask(0.1) for _ in range(20))


@given(st.floats(0.0, 100.0))
def test_who_only_asks_for_a_member_is_never_refused(now_s: float) -> None:
    service = Service(members_of(1, 1), nobody)
    while service.ask(0.0) is not None:
        pass
    assert isinstance(service.choice(now_s, request(), pressures={}), Choice)


def test_stopped_nobody_is_refused() -> None:
    service = Service(members_of(1), nobody)
    while service.ask(0.0) is not None:
        pass
    pressures = {"a": MemberPressure(member_id="a", in_flight=0, pool_in_flight=0)}
    choice = select(POLICY, service.route, request(), service.beliefs, pressures, None, 0.5, 0.0)
    assert isinstance(choice, Choice)


@given(st.integers(0, 40), st.integers(0, 200))
def test_probes_that_do_not_fail_let_others_in_until_all_are(more: int, flying: int) -> None:
    belief = fresh(members_of(1))["a"]._replace(faults_in_a_row=FAULTS_IN_A_ROW + more)
    alone, beside = wait_s([belief], 0), wait_s([belief], flying)
    assert FIRST_PROBE_S <= alone <= beside <= 2.0 * alone <= 2.0 * PROBE_MOST_S


# --- where anybody answers -------------------------------------------------------------------------------


@given(st.integers(0, FAULTS_IN_A_ROW - 1), st.integers(0, 50))
def test_a_few_failures_refuse_nobody(faults: int, answers: int) -> None:
    service = Service(members_of(1), lambda _, now_s: now_s < 1.0)
    for number in range(answers):
        service.ask(number / 100.0)
    for _ in range(faults):
        service.ask(2.0)
    assert isinstance(service.choice(2.0, request()), Choice)


@given(
    st.sampled_from([(1,), (2,), (1, 1), (3, 1)]),
    st.lists(st.tuples(st.booleans(), st.floats(0.0, 3.0)), max_size=80),
    st.integers(0, 3),
)
def test_who_just_answered_is_asked_by_the_next(
    replicas: tuple[int, ...], steps: list[tuple[bool, float]], seed: int
) -> None:
    now_s, outcomes = 0.0, iter([answers for answers, _ in steps for _ in range(4)])
    service = Service(members_of(*replicas), lambda *_: next(outcomes), Random(seed))
    for _, passed_s in steps:
        answered = service.ask(now_s, tries=1)
        if answered:
            assert isinstance(service.choice(now_s, request()), Choice)
        now_s += passed_s


@pytest.mark.parametrize("replicas", [(2,), (4,), (1, 1), (2, 1)])
def test_where_only_one_fails_nobody_is_refused(replicas: tuple[int, ...]) -> None:
    service = Service(members_of(*replicas), lambda replica, _: replica != "a/0")
    for number in range(3000):
        service.ask(number / 50.0)
    assert service.refused == 0


@pytest.mark.parametrize("replicas", [(1,), (2,), (1, 1)])
@pytest.mark.parametrize(("failing", "most"), [(0.1, 0.0), (0.5, 0.0), (0.75, 0.05)])
def test_members_that_answer_some_requests_go_on_doing_so(
    replicas: tuple[int, ...], failing: float, most: float
) -> None:
    luck = Random(3)
    service = Service(members_of(*replicas), lambda *_: luck.random() >= failing)
    for number in range(5_000):
        service.ask(number / 50.0, tries=1)
    assert service.refused <= most * 5_000


@given(st.floats(0.0, 500.0), st.floats(0.0, 1.0), st.integers(0, 60))
def test_who_failed_often_before_needs_more_in_a_row(others: float, share: float, run: int) -> None:
    belief = fresh(members_of(1))["a"]._replace(
        faults_in_a_row=run, weight=others + run, failures=others * share + run
    )
    needed = faults_needed(belief)
    assert needed >= FAULTS_IN_A_ROW
    assert fails(belief) == (run >= needed)
    worse = belief._replace(failures=others + run)
    assert faults_needed(worse) >= needed


# --- who comes back --------------------------------------------------------------------------------------


def test_one_that_is_out_and_answers_takes_the_place_of_those_that_fail() -> None:
    service = Service(members_of(2), lambda replica, _: replica == "a/1")
    for number in range(20):
        service.ask(number / 10.0)
    assert outs(service.beliefs["a"].replicas) == ("a/0",)
    service.answers = nobody
    for number in range(20):
        service.ask(3.0 + number / 10.0)
    service.answers = lambda replica, _: replica == "a/0"
    seen = [service.ask(10.0 + number / 10.0) for number in range(300)]
    assert outs(service.beliefs["a"].replicas) == ("a/1",)
    assert seen.count(None) <= 100
    assert all(seen[seen.index(True) + 1 :])


def test_a_member_that_is_out_returns_with_its_first_answer_where_the_others_fail() -> None:
    service = Service(members_of(1, 1), nobody)
    for number in range(60):
        service.ask(number / 10.0)
    out = next(name for name, belief in service.beliefs.items() if belief.health is Health.OUT)
    other = "b" if out == "a" else "a"
    service.beliefs[out] = learn(POLICY, service.beliefs[out], succeeded(out, 7.0))
    assert service.look(7.0) == [
        (out, Health.RAMPING, HealthReason.PROBES_PASSED),
        (other, Health.OUT, HealthReason.FAULTS_IN_A_ROW),
    ]
    service.answers = lambda replica, _: replica.startswith(out)
    assert all(service.ask(7.5, tries=1) for _ in range(40))


def test_replicas_that_all_fail_stay_and_one_that_answers_sends_the_others_away() -> None:
    service = Service(members_of(2), nobody)
    for number in range(200):
        service.ask(number / 10.0)
    assert outs(service.beliefs["a"].replicas) == ()
    service.answers = lambda replica, _: replica == "a/1"
    for number in range(100):
        service.ask(20.0 + number / 10.0)
    assert outs(service.beliefs["a"].replicas) == ("a/0",)
