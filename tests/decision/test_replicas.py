"""Replicas of one member: who fails or hangs beside others is left out, probed, and comes back."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.beliefs import WELL, Belief, Health, Standing, initial_beliefs
from loadwise.decision.facts import Replica
from loadwise.decision.health import review
from loadwise.decision.outcome import learn
from loadwise.decision.replicas import outs, pick_replica
from loadwise.decision.rotation import PROBE_SHARE, HealthReason
from loadwise.decision.silence import Silence

from .build import POLICY, failed, member, route, succeeded

NAMES = ("a", "b", "c", "d")
MANY = member("accurate", replicas=tuple(Replica(replica_id=name, pool_id="p") for name in NAMES))
TWO = member(
    replicas=(
        Replica(replica_id="a", pool_id="p", capacity_requests=8),
        Replica(replica_id="b", pool_id="p", capacity_requests=32),
    )
)
BELIEFS = initial_beliefs(route(members=(MANY, member("fast"))), 0.0)
OUT = Standing(Health.OUT, probe_at_s=100.0, removals=1)


def silent(name: str, seconds: float = 25.0, serving: int = 4) -> Silence:
    return Silence(member_id="accurate", replica_id=name, seconds=seconds, serving=serving)


def after(beliefs: dict[str, Belief], now_s: float, *silences: Silence) -> dict[str, Belief]:
    """The beliefs after a review."""
    changed = {change.member_id: change.belief for change in review(POLICY, beliefs, now_s, silences)}
    return {**beliefs, **changed}


def fails(belief: Belief, name: str, at_s: float, times: int = 1) -> Belief:
    for _ in range(times):
        belief = learn(POLICY, belief, replace(failed("accurate", at_s), replica_id=name))
    return belief


def answers(belief: Belief, name: str, at_s: float, times: int = 1) -> Belief:
    for _ in range(times):
        belief = learn(POLICY, belief, replace(succeeded("accurate", at_s), replica_id=name))
    return belief


# --- who gets a request ----------------------------------------------------------------------------------


def test_replica_with_most_room_is_picked() -> None:
    assert pick_replica(TWO, {"a": 4, "b": 8}, 0.5) == "b"
    assert pick_replica(TWO, {"a": 4, "b": 8}, 0.5, frozenset({"b"})) == "a"
    assert pick_replica(TWO, {}, 0.5, frozenset({"a", "b"})) is None
    assert {pick_replica(TWO, {}, draw) for draw in (0.0, 0.49, 0.5, 1.0)} == {"a", "b"}


@given(st.floats(0.0, 1.0, exclude_max=True), st.dictionaries(st.sampled_from(NAMES), st.integers(0, 9)))
def test_one_that_is_out_gets_nothing_before_its_probe_is_due(draw: float, held: dict[str, int]) -> None:
    assert pick_replica(MANY, held, draw, standings={**BELIEFS["accurate"].replicas, "b": OUT}) != "b"


def test_its_probes_come_one_at_a_time_and_the_others_share_the_rest() -> None:
    chance, standings = Random(1), {**BELIEFS["accurate"].replicas, "b": OUT}
    draws = [chance.random() for _ in range(4000)]
    seen = Counter(pick_replica(MANY, {}, draw, standings=standings, now_s=100.0) for draw in draws)
    assert abs(seen["b"] / 4000 - PROBE_SHARE) < 0.015
    assert all(abs(seen[name] / 4000 - (1 - PROBE_SHARE) / 3) < 0.03 for name in "acd")
    probing = {pick_replica(MANY, {"b": 1}, draw, standings=standings, now_s=100.0) for draw in draws}
    assert probing == set("acd")


def test_one_on_its_ramp_takes_a_growing_share() -> None:
    chance, shares = Random(2), []
    for now_s in (0.0, 15.0, 30.0):
        standings = {"a": WELL, "b": Standing(Health.RAMPING)}
        seen = Counter(
            pick_replica(TWO, {}, chance.random(), standings=standings, now_s=now_s) for _ in range(4000)
        )
        shares.append(seen["b"] / 4000)
    assert abs(shares[0] - 0.05) < 0.02
    assert abs(shares[1] - 0.275) < 0.03
    assert abs(shares[2] - 0.5) < 0.03


@given(st.floats(0.0, 1.0))
def test_where_all_are_out_or_excluded_somebody_is_asked_all_the_same(draw: float) -> None:
    standings = dict.fromkeys(NAMES, OUT)
    assert pick_replica(MANY, {}, draw, standings=standings) in NAMES
    well = {**standings, "c": WELL}
    assert pick_replica(MANY, {}, draw, frozenset({"c"}), well) in {"a", "b", "d"}


# --- who leaves and returns ------------------------------------------------------------------------------


def test_the_silent_one_leaves_and_its_member_stays() -> None:
    beliefs = after(dict(BELIEFS), 50.0, silent("b"))
    assert outs(beliefs["accurate"].replicas) == ("b",)
    assert beliefs["accurate"].health is Health.HEALTHY


def test_where_no_other_speaks_the_member_leaves_and_not_its_replicas() -> None:
    everyone = [silent(name) for name in NAMES]
    beliefs = after(dict(BELIEFS), 50.0, *everyone)
    assert beliefs["accurate"].health is Health.OUT
    assert outs(beliefs["accurate"].replicas) == ()


@given(st.lists(st.sampled_from(NAMES), unique=True), st.lists(st.floats(0.0, 500.0), min_size=4, max_size=4))
def test_at_most_half_leave_and_never_the_last(asked: list[str], seconds: list[float]) -> None:
    beliefs = dict(BELIEFS)
    for now_s in (50.0, 51.0, 52.0):
        seen = [silent(name, each) for name, each in zip(asked, seconds, strict=False)]
        beliefs = after(beliefs, now_s, *seen)
    assert len(outs(beliefs["accurate"].replicas)) <= 2


def test_one_that_fails_leaves_before_its_member_is_blamed() -> None:
    """It fails at once, so it has most room: every request tries it first, and another answers."""
    beliefs = dict(BELIEFS)
    for number in range(10):
        at_s = 1.0 + number
        if not outs(beliefs["accurate"].replicas):
            beliefs["accurate"] = fails(beliefs["accurate"], "b", at_s)
        beliefs["accurate"] = answers(beliefs["accurate"], "a", at_s)
        beliefs = after(beliefs, at_s)
    assert outs(beliefs["accurate"].replicas) == ("b",)
    assert beliefs["accurate"].health is Health.HEALTHY


def test_what_hung_on_one_that_is_out_and_fails_later_is_not_its_members_fault() -> None:
    beliefs = after(dict(BELIEFS), 50.0, silent("b"))
    late = fails(beliefs["accurate"], "b", 120.0, times=20)
    assert late.error_rate == 0.0
    assert after({**beliefs, "accurate": late}, 121.0)["accurate"].health is Health.HEALTHY


def test_it_is_probed_returns_on_a_ramp_and_is_well_again() -> None:
    beliefs = after(dict(BELIEFS), 50.0, silent("b"))
    beliefs["accurate"] = answers(beliefs["accurate"], "b", 60.0, times=3)
    seen = []
    for now_s in (61.0, 75.0, 92.0):
        seen += review(POLICY, beliefs, now_s)
        beliefs = after(beliefs, now_s)
    assert [(c.subject, c.health, c.reason) for c in seen] == [
        ("b", Health.RAMPING, HealthReason.PROBES_PASSED),
        ("b", Health.HEALTHY, HealthReason.RAMP_COMPLETE),
    ]
    assert beliefs["accurate"].replicas["b"] == WELL


def test_a_failed_probe_and_a_failed_ramp_make_the_next_wait_longer() -> None:
    beliefs = after(dict(BELIEFS), 50.0, silent("b"))
    first_s = beliefs["accurate"].replicas["b"].probe_at_s
    beliefs["accurate"] = fails(beliefs["accurate"], "b", 60.0)
    assert beliefs["accurate"].replicas["b"].probe_at_s > first_s
    beliefs["accurate"] = answers(beliefs["accurate"], "b", 80.0, times=3)
    beliefs = after(beliefs, 81.0)
    beliefs["accurate"] = fails(beliefs["accurate"], "b", 82.0, times=2)
    beliefs = after(beliefs, 83.0)
    again = beliefs["accurate"].replicas["b"]
    assert again.health is Health.OUT
    assert again.probe_at_s - 83.0 > first_s - 50.0


def test_a_member_with_one_replica_has_no_standings() -> None:
    assert BELIEFS["fast"].replicas == {}
    assert learn(POLICY, BELIEFS["fast"], failed("fast")).replicas == {}
