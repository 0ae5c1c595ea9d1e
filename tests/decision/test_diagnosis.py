"""The first sentence at night: it names whoever is at fault, and nobody when nobody is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.burn import Share
from loadwise.decision.diagnosis import (
    Burn,
    Culprit,
    MemberSight,
    PoolSight,
    Situation,
    Stage,
    Traffic,
    diagnose,
)


def burn(missed: int = 0, judged: int = 100, *, route: str = "auto", hour: int | None = None) -> Burn:
    return Burn(
        route=route,
        objective="time to first token",
        limit_s=1.0,
        short=Share(judged, missed),
        long=Share(12 * judged, missed if hour is None else hour),
    )


def errors(missed: int) -> Burn:
    counted = Share(200, missed)
    return Burn(route="auto", objective="answered without error", limit_s=None, short=counted, long=counted)


GOOD = MemberSight(member_id="good", requests=100, judged=100, within=99)
ALSO = MemberSight(member_id="also", requests=100, judged=100, within=98)
CASES = {
    "a member that cannot be read": (
        Situation(burns=[burn(50)], members=[GOOD, MemberSight(member_id="gone", unread="refused")]),
        Culprit.MEMBER,
        "gone",
    ),
    "a member that is out": (
        Situation(burns=[burn()], members=[GOOD, MemberSight(member_id="out", health="out", failed=5)]),
        Culprit.MEMBER,
        "out",
    ),
    "a member that fails more than the others": (
        Situation(burns=[errors(8)], members=[GOOD, MemberSight(member_id="bad", requests=40, failed=8)]),
        Culprit.MEMBER,
        "bad",
    ),
    "a member that is slower than the others": (
        Situation(
            burns=[burn(20)],
            members=[GOOD, ALSO, MemberSight(member_id="slow", requests=50, judged=50, within=20)],
        ),
        Culprit.MEMBER,
        "slow",
    ),
    "a replica that is out while the others serve": (
        Situation(
            members=[GOOD, MemberSight(member_id="part", replicas=3, replicas_out=("part/1",))],
        ),
        Culprit.MEMBER,
        "part",
    ),
    "a pool under high load": (
        Situation(
            burns=[burn(20)],
            members=[GOOD, ALSO],
            pools=[PoolSight(pool_id="a", load=0.3), PoolSight(pool_id="b", load=0.93, waiting=12)],
        ),
        Culprit.POOL,
        "b",
    ),
    "all alike": (Situation(burns=[burn(20)], members=[GOOD, ALSO]), Culprit.EVERYONE, None),
    "the only member that answered": (
        Situation(
            burns=[burn(20)],
            members=[
                MemberSight(member_id="lone", requests=100, judged=100, within=80),
                MemberSight(member_id="idle"),
            ],
            pools=[PoolSight(pool_id="a", load=0.3)],
        ),
        Culprit.MEMBER,
        "lone",
    ),
    "the only pool, by members that miss alike": (
        Situation(
            burns=[burn(20)],
            members=[MemberSight(member_id=name, requests=100, judged=100, within=80) for name in ("x", "y")],
            pools=[PoolSight(pool_id="a", load=0.3)],
        ),
        Culprit.POOL,
        "a",
    ),
    "the gateway": (
        Situation(
            burns=[burn(20)],
            members=[MemberSight(member_id="lone", requests=100, judged=100, within=80)],
            stages=[Stage(name="gateway", mean_s=2.0), Stage(name="decode", mean_s=0.1)],
            pools=[PoolSight(pool_id="a", load=0.3)],
        ),
        Culprit.EVERYONE,
        None,
    ),
    "nobody": (Situation(burns=[burn(0)], members=[GOOD, ALSO]), Culprit.NOTHING, None),
    "no request at all": (Situation(members=[GOOD]), Culprit.UNKNOWN, None),
}


@pytest.mark.parametrize("name", CASES)
def test_whoever_is_at_fault_is_named_in_one_sentence(name: str) -> None:
    situation, culprit, named = CASES[name]
    fault = diagnose(situation).fault
    assert (fault.culprit, fault.name) == (culprit, named)
    assert fault.sentence.endswith(".")
    assert (f"{named} is at fault" if named else "at fault") in fault.sentence


def test_a_member_with_few_requests_is_not_accused() -> None:
    few = MemberSight(member_id="few", requests=4, failed=4, judged=4, within=0)
    assert diagnose(Situation(burns=[burn(0)], members=[GOOD, few])).fault.culprit is Culprit.NOTHING


def test_failures_within_their_budget_do_not_hide_an_overloaded_pool() -> None:
    failing = MemberSight(member_id="some", requests=400, failed=1)
    pool = PoolSight(pool_id="b", load=0.95)
    found = diagnose(Situation(burns=[burn(50), errors(1)], members=[GOOD, failing], pools=[pool]))
    assert (found.fault.culprit, found.fault.name) == (Culprit.POOL, "b")


def test_refusals_that_no_member_answered_for_accuse_no_member() -> None:
    pool = PoolSight(pool_id="local", load=0.2)
    situation = Situation(
        burns=[errors(90)], members=[GOOD, ALSO], pools=[pool], short=Traffic(ended=110, failed=0, refused=90)
    )
    fault = diagnose(situation).fault
    assert (fault.culprit, fault.name) == (Culprit.POOL, "local")
    assert "90 of 200 requests were refused" in fault.sentence


def test_one_of_two_members_that_fail_alike_is_not_accused() -> None:
    pair = [MemberSight(member_id=name, requests=100, failed=20) for name in ("a", "b")]
    assert diagnose(Situation(burns=[burn(20)], members=pair)).fault.culprit is Culprit.EVERYONE


def test_the_queue_of_a_loaded_pool_is_told() -> None:
    sentence = diagnose(CASES["a pool under high load"][0]).fault.sentence
    assert sentence == "Pool b is at fault: its load is 0.93 (high from 0.80), 12 requests wait."


def test_the_objective_that_burns_fastest_comes_first() -> None:
    found = diagnose(Situation(burns=[burn(1, route="calm"), burn(50, route="hot"), burn(5, route="warm")]))
    assert [found.route for found in found.burns] == ["hot", "warm", "calm"]


def test_the_stage_that_takes_longest_is_named_and_unknown_ones_are_not() -> None:
    stages = [
        Stage(name="queue", mean_s=None),
        Stage(name="prefill", mean_s=0.2),
        Stage(name="decode", mean_s=1),
    ]
    assert diagnose(Situation(stages=stages)).slowest == "decode"
    assert diagnose(Situation(stages=stages[:1])).slowest is None


counts = st.integers(0, 1000)
members = st.builds(
    lambda name, requests, failed, within: MemberSight(
        member_id=name,
        requests=requests,
        failed=min(failed, requests),
        judged=requests,
        within=min(within, requests),
    ),
    st.sampled_from("abcd"),
    counts,
    counts,
    counts,
)


@given(st.lists(members, max_size=4), st.lists(st.tuples(counts, counts), max_size=4))
def test_any_situation_has_exactly_one_sentence(
    sights: list[MemberSight], shares: list[tuple[int, int]]
) -> None:
    burns = [burn(min(missed, judged), judged) for judged, missed in shares]
    found = diagnose(Situation(burns=burns, members=sights))
    assert found.fault.sentence.endswith(".")
    assert "\n" not in found.fault.sentence
    assert sorted(map(id, found.burns)) == sorted(map(id, burns))
