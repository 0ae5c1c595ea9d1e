"""What lies ready between requests: it is what beliefs say, however they came about, and decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from loadwise.decision.beliefs import Belief, Health
from loadwise.decision.ensemble import select
from loadwise.decision.facts import Capabilities, EnsembleStrategy, Feature, Route
from loadwise.decision.lineup import Lineup, lineup_of
from loadwise.decision.outcome import drifted, learn
from loadwise.decision.standings import Terms, standings_of

from .build import POLICY, QUALITIES, at_load, failed, fresh, member, pressures, request, route, succeeded

Change = Callable[[Belief, float], Belief]
CHANGES: tuple[Change, ...] = (
    lambda belief, now_s: learn(POLICY, belief, succeeded(belief.member_id, now_s, load_score=0.5)),
    lambda belief, now_s: learn(POLICY, belief, succeeded(belief.member_id, now_s, total_s=60.0)),
    lambda belief, now_s: learn(POLICY, belief, failed(belief.member_id, now_s)),
    lambda belief, now_s: drifted(POLICY, belief, now_s + 100.0),
    lambda belief, now_s: belief._replace(quality=None if now_s > 5.0 else 0.5),
    lambda belief, now_s: belief._replace(health=Health.OUT),
    lambda belief, now_s: belief._replace(health=Health.RAMPING, outcomes=30),
)
steps = st.lists(st.tuples(st.sampled_from(sorted(QUALITIES)), st.sampled_from(CHANGES)), max_size=12)


def after(beliefs: Mapping[str, Belief], step: tuple[str, Change], now_s: float) -> dict[str, Belief]:
    name, change = step
    return {**beliefs, name: change(beliefs[name], now_s)}


@settings(deadline=None)
@given(steps, st.lists(st.booleans(), min_size=12, max_size=12), st.integers(0, 2))
def test_what_was_worked_out_of_changes_is_what_all_beliefs_say(
    changes: list[tuple[str, Change]], looked: list[bool], level: int
) -> None:
    of = route()
    lineup, beliefs = Lineup(of, of.members), fresh(of)
    terms = Terms(of.objectives, lineup.pools, lineup.weights)
    for at, step in enumerate(changes):
        beliefs = after(beliefs, step, float(at))
        if looked[at]:
            found = lineup.standings(beliefs, level)
            assert found == standings_of(terms, list(beliefs.values()), level)


@settings(deadline=None)
@given(steps, st.sampled_from(EnsembleStrategy), st.floats(0, 1, exclude_max=True), st.integers(0, 40))
def test_what_was_asked_before_changes_no_choice(
    changes: list[tuple[str, Change]], name: EnsembleStrategy, draw: float, in_flight: int
) -> None:
    of, beliefs = route(name), fresh(route(name))
    for at, step in enumerate(changes):
        beliefs = after(beliefs, step, float(at))
        for strategy in (at_load(0.1), at_load(0.95)):
            flights = pressures(of, fast=in_flight)
            asked = POLICY, of, request(), beliefs, flights, strategy, draw, float(at)
            # An equal route that nobody asked before.
            anew = POLICY, replace(of), request(), beliefs, flights, strategy, draw, float(at)
            assert select(*asked) == select(*anew)


def test_what_speaks_for_a_member_follows_its_faults_where_its_good_answers_stay_as_many() -> None:
    of = route()
    lineup, beliefs = Lineup(of, of.members), fresh(of)
    terms = Terms(of.objectives, lineup.pools, lineup.weights)
    # Half of the answers are good: late ones, then faults.
    late = beliefs["fast"]._replace(by_load=((3.0, 0.0),) * 3)
    faulty = beliefs["fast"]._replace(recent=2.0, recent_faults=2.0)
    for belief in (late, faulty):
        beliefs = {**beliefs, "fast": belief}
        assert lineup.standings(beliefs, 0) == standings_of(terms, list(beliefs.values()), 0)


def test_requests_that_only_some_can_answer_share_what_is_known_of_those() -> None:
    able = Capabilities(features=frozenset({Feature.TOOLS}))
    of: Route = route(members=(member("fast"), replace(member("accurate"), capabilities=able)))
    whole = lineup_of(of)
    assert whole.among(of.members) is whole
    assert whole.among(list(of.members)) is whole
    assert whole.among(list(of.members[1:])) is whole.among([of.members[1]])
    assert whole.among([of.members[1]]).ids == ("accurate",)
