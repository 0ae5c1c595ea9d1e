"""Prices, limits and tags: what an operator says of a member is kept, and no more is made of it."""

from __future__ import annotations

from dataclasses import replace
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.decision.build import POLICY, at_load, fresh, member, pressures, request, route, taught

from loadwise.decision.admission import AdmissionReason, Entry, PoolLimit, enter
from loadwise.decision.candidates import Refusal, RefusalReason, candidates
from loadwise.decision.choices import Choice
from loadwise.decision.ensemble import select
from loadwise.decision.facts import (
    EnsembleStrategy,
    MemberPressure,
    Objectives,
    Outcome,
    Principal,
    Replica,
    Route,
)
from loadwise.decision.limits import (
    EMPTY,
    KEPT,
    Limits,
    Minute,
    counted,
    recent,
    settled,
    together,
    uncounted,
    used,
    wait_for_request_s,
    wait_for_tokens_s,
)
from loadwise.decision.lineup import lineup_of
from loadwise.decision.price import Price, spent, thrifts
from loadwise.decision.tags import TagRule

amounts = st.floats(0.0, 1000.0)
prices = st.builds(Price, input_per_million=amounts, output_per_million=amounts)
NAMES = ("fast", "balanced", "accurate")
EACH_S = {"fast": 0.002, "balanced": 0.004, "accurate": 0.008}


def priced(weight: float, strategy: EnsembleStrategy, *given_prices: Price | None) -> Route:
    """A route whose members are on devices of their own and cost what is given."""
    members = tuple(
        member(name, price=price, replicas=(Replica(replica_id=f"{name}-0", pool_id=name),))
        for name, price in zip(NAMES, given_prices, strict=True)
    )
    return route(strategy, members=members, price_weight=weight)


def shares(of: Route) -> dict[str, float]:
    chosen = select(POLICY, of, request(), taught(of, EACH_S), pressures(of), at_load(0.1), 0.5, 11.0)
    assert isinstance(chosen, Choice)
    return dict(chosen.candidates)


strategies = st.sampled_from(list(EnsembleStrategy))
three = st.tuples(prices, prices, prices)


# --- price ---------------------------------------------------------------------------------------


@given(strategies, three)
def test_where_a_route_does_not_say_so_prices_change_nothing(strategy, found) -> None:
    assert shares(priced(0.0, strategy, *found)) == shares(priced(0.0, strategy, None, None, None))


@given(strategies, three, st.floats(0.0, 1.0), st.sampled_from(NAMES), st.floats(0.0, 1000.0))
def test_a_dearer_member_never_gets_more(strategy, found, weight, name, more) -> None:
    before = dict(zip(NAMES, found, strict=True))
    dearer = replace(before[name], output_per_million=before[name].output_per_million + more)
    after = {**before, name: dearer}
    gained = shares(priced(weight, strategy, *after.values()))[name]
    assert gained <= shares(priced(weight, strategy, *before.values()))[name] + 1e-9


@given(strategies, three, st.floats(0.0, 1.0))
def test_the_currency_does_not_matter(strategy, found, weight) -> None:
    cents = [
        Price(
            input_per_million=128 * price.input_per_million, output_per_million=128 * price.output_per_million
        )
        for price in found
    ]
    one, other = (shares(priced(weight, strategy, *some)) for some in (found, cents))
    assert one == pytest.approx(other)


def test_by_price_alone_the_cheapest_answers_and_by_none_the_best() -> None:
    costs = [Price(input_per_million=x, output_per_million=x) for x in (1.0, 2.0, 8.0)]
    leading = {}
    for weight in (0.0, 1.0):
        found = shares(priced(weight, EnsembleStrategy.BEST_OF_N, *costs))
        leading[weight] = max(found, key=found.__getitem__)
    assert leading == {0.0: "accurate", 1.0: "fast"}


@given(st.lists(st.none() | amounts, max_size=6))
def test_thrift_lies_between_none_and_all_and_is_highest_for_the_cheapest(found) -> None:
    thrift = thrifts(found)
    assert all(0.0 <= each <= 1.0 for each in thrift)
    known = [(price, each) for price, each in zip(found, thrift, strict=True) if price is not None]
    assert not known or min(known)[1] == 1.0
    assert [each for _, each in sorted(known, key=lambda pair: pair[0])] == sorted(
        [each for _, each in known], reverse=True
    )


def test_an_answer_costs_its_tokens_and_cached_ones_their_own_price() -> None:
    price = Price(input_per_million=2.0, output_per_million=10.0, cached_input_per_million=0.5)
    ended = Outcome(
        request_id="r", member_id="m", replica_id="m-0", ending="succeeded", finished_s=1.0,
        prompt_tokens=1_000_000, cached_tokens=400_000, output_tokens=100_000,
    )  # fmt: skip
    assert spent(price, ended) == pytest.approx(0.6 * 2.0 + 0.4 * 0.5 + 0.1 * 10.0)
    assert spent(price, replace(ended, prompt_tokens=None, output_tokens=None)) is None


# --- limits --------------------------------------------------------------------------------------

steps = st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(0, 400)), max_size=80)


@given(steps, st.integers(1, 8), st.integers(200, 1000))
def test_no_sixty_seconds_hold_more_than_the_limits_wherever_they_begin(asked, requests, tokens) -> None:
    limits = Limits(requests_per_minute=requests, tokens_per_minute=tokens)
    minute, now_s, let_in = EMPTY, 0.0, []
    for passed_s, needed in asked:
        now_s += passed_s
        waits = wait_for_request_s(limits, minute, now_s), wait_for_tokens_s(limits, minute, now_s, needed)
        if max(waits) > 0.0:
            continue
        minute = counted(minute, now_s, needed)
        let_in.append((now_s, needed))
    for began_s, _ in let_in:
        within = [needed for at_s, needed in let_in if began_s <= at_s < began_s + 60.0]
        assert len(within) <= requests
        # One that is larger than the whole limit goes alone.
        assert sum(within) <= tokens or len([needed for needed in within if needed]) == 1
    assert len(minute) <= KEPT


@given(steps, st.integers(1, 8))
def test_who_waits_as_long_as_told_may_enter(asked, requests) -> None:
    limits = Limits(requests_per_minute=requests)
    minute, now_s = EMPTY, 0.0
    for passed_s, needed in asked:
        now_s += passed_s
        now_s += wait_for_request_s(limits, minute, now_s)
        assert wait_for_request_s(limits, minute, now_s) == 0.0
        minute = counted(minute, now_s, needed)


def test_a_request_counts_what_it_needed_once_that_is_known() -> None:
    minute = counted(counted(EMPTY, 10.2, 100), 10.9, 50)
    assert used(settled(minute, 10.2, -60), 11.0) == (2, 90)
    assert used(settled(minute, 10.2, -60), 10.0 + KEPT) == (0, 0)
    assert settled(minute, 99.0, 5) == minute


def entry(limits: Limits, minute=EMPTY, in_flight: int = 0, tokens: int = 10, now_s: float = 5.0) -> Entry:
    pressure = MemberPressure(member_id="m", in_flight=in_flight, pool_in_flight=in_flight)
    free = PoolLimit()
    return Entry(POLICY, request(), pressure, free, free, Objectives(), None, limits, minute, tokens, now_s)


@pytest.mark.parametrize(
    ("limits", "in_flight", "reason"),
    [
        (Limits(requests_per_minute=1), 0, AdmissionReason.REQUESTS_PER_MINUTE),
        (Limits(tokens_per_minute=100), 0, AdmissionReason.TOKENS_PER_MINUTE),
        (Limits(max_concurrent_requests=3), 3, AdmissionReason.MAX_CONCURRENT),
    ],
)
def test_a_limit_that_is_reached_keeps_out_and_says_until_when(limits, in_flight, reason) -> None:
    minute = counted(EMPTY, 4.0, 95)
    admission = enter(entry(limits, minute, in_flight))
    assert (admission.admitted, admission.reason) == (False, reason)
    assert admission.retry_after_s is not None
    assert admission.retry_after_s >= 1.0
    if reason is not AdmissionReason.MAX_CONCURRENT:
        later_s = 5.0 + admission.retry_after_s
        assert floor(later_s) - 4 >= KEPT
        assert enter(entry(limits, minute, in_flight, now_s=later_s)).admitted


def test_without_limits_everything_enters() -> None:
    assert enter(entry(Limits(), counted(EMPTY, 5.0, 1_000_000_000), 1000)).admitted


# --- tags ----------------------------------------------------------------------------------------

tags = st.frozensets(st.sampled_from(["eu", "us", "paid", "gpu"]))


@given(st.tuples(tags, tags, tags), tags, tags, st.sampled_from(["auto", *NAMES]))
def test_a_key_reaches_only_members_that_its_tags_allow(carried, required, forbidden, model) -> None:
    rule = TagRule(require=required, forbid=forbidden)
    of = route(members=tuple(member(name, tags=own) for name, own in zip(NAMES, carried, strict=True)))
    asked = request(model=model, principal=Principal(tags=rule))
    allowed = [m.member_id for m in of.members if rule.allows(m.tags) and model in ("auto", m.member_id)]
    found = candidates(lineup_of(of), asked)
    if isinstance(found, Refusal):
        assert (found.reason, found.status, allowed) == (RefusalReason.NOT_ALLOWED, 403, [])
        return
    assert [m.member_id for m in found] == allowed
    chosen = select(POLICY, of, asked, fresh(of), {}, at_load(0.1), 0.3, 1.0)
    assert isinstance(chosen, Choice)
    assert chosen.member_id in allowed


seconds = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 500)), max_size=30)


def minute_of(begun: list[tuple[int, int]]) -> Minute:
    minute = EMPTY
    for at, tokens in sorted(begun):
        minute = counted(minute, float(at), tokens)
    return minute


@given(seconds, st.integers(90, 120), st.integers(0, 500))
def test_a_claim_that_is_taken_back_leaves_no_trace(begun, now: int, tokens: int) -> None:
    before = minute_of(begun)
    assert uncounted(counted(before, now, tokens), tokens) == recent(before, now)


@given(st.lists(seconds, max_size=4))
def test_minutes_together_are_the_minute_of_all_that_began(each) -> None:
    apart = [minute_of(begun) for begun in each]
    last = 90.0
    sums = [used(minute, last) for minute in apart]
    assert used(together(*apart), last) == (sum(s[0] for s in sums), sum(s[1] for s in sums))
    ats = [second.at for second in together(*apart)]
    assert ats == sorted(set(ats))


def test_requests_of_other_processes_take_places_too() -> None:
    limits = Limits(max_concurrent_requests=3)
    entry = Entry(
        POLICY, request(), MemberPressure(member_id="m", in_flight=1, pool_in_flight=1), PoolLimit(),
        PoolLimit(), Objectives(), None, limits,
    )  # fmt: skip
    assert enter(entry._replace(elsewhere=1)).admitted
    assert enter(entry._replace(elsewhere=2)).reason is AdmissionReason.MAX_CONCURRENT
