"""What selection promises: propensities, obedience, loyalty, adaptation, small exploration."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadwise.decision.beliefs import Belief, Health
from loadwise.decision.candidates import Refusal, RefusalReason
from loadwise.decision.choices import Choice, ChoiceReason, Remembered
from loadwise.decision.ensemble import select
from loadwise.decision.facts import (
    Capabilities,
    Endpoint,
    EnsembleStrategy,
    Feature,
    Policy,
    Principal,
    RequestFacts,
    Route,
)
from loadwise.decision.outcome import learn
from loadwise.decision.strategy import Strategy

from .build import POLICY, at_load, failed, fresh, member, pressures, request, route, succeeded, taught

ADAPTIVE = route()
QUIET, MIDDLE, BUSY = at_load(0.1), at_load(0.5), at_load(0.95)
SPEEDS = {"fast": 0.001, "balanced": 0.003, "accurate": 0.009}


def choose(
    of: Route = ADAPTIVE,
    asked: RequestFacts | None = None,
    known: dict[str, Belief] | None = None,
    draw: float = 0.5,
    now_s: float = 10.0,
    strategy: Strategy | None = QUIET,
    policy: Policy = POLICY,
    **options: Any,
) -> Choice:
    flights = options.pop("flights", None)
    found = select(
        policy,
        of,
        asked or request(),
        known if known is not None else fresh(of),
        pressures(of) if flights is None else flights,
        strategy,
        draw,
        now_s,
        **options,
    )
    assert isinstance(found, Choice)
    return found


def refused(of: Route, asked: RequestFacts, **options: Any) -> Refusal:
    found = select(POLICY, of, asked, fresh(of), {}, QUIET, 0.5, 0.0, **options)
    assert isinstance(found, Refusal)
    return found


# --- always ------------------------------------------------------------------------------------


@st.composite
def situations(draw: st.DrawFn) -> tuple[Route, dict[str, Belief], dict[str, int]]:
    of = route(draw(st.sampled_from(list(EnsembleStrategy))))
    known = fresh(of)
    for name in list(known):
        slow = draw(st.floats(0.1, 20.0))
        for at in range(draw(st.integers(0, 25))):
            known[name] = learn(POLICY, known[name], succeeded(name, at * 0.1, total_s=0.1 + slow))
        health = draw(st.sampled_from(list(Health)))
        known[name] = known[name]._replace(health=health, probe_at_s=draw(st.floats(0.0, 30.0)))
    return of, known, {name: draw(st.integers(0, 40)) for name in known}


@settings(deadline=None)
@given(
    situations(), st.floats(0, 1, exclude_max=True), st.sampled_from([QUIET, MIDDLE, BUSY]), st.floats(0, 100)
)
def test_every_choice_has_its_propensity_and_all_add_up_to_one(
    situation: tuple[Route, dict[str, Belief], dict[str, int]], draw: float, strategy: Strategy, now_s: float
) -> None:
    of, known, in_flight = situation
    choice = choose(of, None, known, draw, now_s, strategy, flights=pressures(of, **in_flight))
    assert sum(share for _, share in choice.candidates) == pytest.approx(1.0, abs=1e-9)
    assert dict(choice.candidates)[choice.member_id] == choice.propensity > 0.0
    assert all(share >= 0.0 for _, share in choice.candidates)
    assert choice == choose(of, None, known, draw, now_s, strategy, flights=pressures(of, **in_flight))


@pytest.mark.parametrize("name", EnsembleStrategy)
def test_draws_follow_propensities(name: EnsembleStrategy) -> None:
    of, known, chance = route(name), taught(route(name), SPEEDS), Random(1)
    shares = dict(choose(of, None, known).candidates)
    drawn = Counter(choose(of, None, known, chance.random()).member_id for _ in range(4000))
    for member_id, share in shares.items():
        assert drawn[member_id] / 4000 == pytest.approx(share, abs=0.03)


def test_a_draw_of_almost_one_still_selects_someone_with_a_share() -> None:
    assert choose(draw=1.0 - 1e-16).propensity > 0.0


# --- who may answer --------------------------------------------------------------------------------


def test_named_member_is_obeyed_whatever_its_state() -> None:
    known = fresh(ADAPTIVE)
    known["fast"] = known["fast"]._replace(health=Health.OUT)
    choice = choose(asked=request(model="fast"), known=known, strategy=None)
    assert (choice.member_id, choice.reason, choice.propensity) == ("fast", ChoiceReason.NAMED, 1.0)


def test_unknown_model_is_refused_by_name() -> None:
    found = refused(ADAPTIVE, request(model="gpt"))
    assert (found.reason, found.status, found.param, found.code) == (
        RefusalReason.UNKNOWN_MODEL,
        404,
        "model",
        "model_not_found",
    )
    assert "accurate" in found.message


def test_field_that_no_member_serves_is_named() -> None:
    found = refused(ADAPTIVE, request(features=frozenset({Feature.TOOLS, Feature.SEED})))
    assert (found.status, found.param) == (400, "tools")


def test_fields_that_no_member_serves_together_are_named() -> None:
    one = replace(member("fast"), capabilities=Capabilities(features=frozenset({Feature.SEED})))
    two = replace(member("accurate"), capabilities=Capabilities(features=frozenset({Feature.TOP_K})))
    found = refused(route(members=(one, two)), request(features=frozenset({Feature.SEED, Feature.TOP_K})))
    assert found.reason is RefusalReason.UNSUPPORTED
    assert "together with" in found.message


def test_request_goes_to_the_member_that_has_its_features() -> None:
    able = replace(member("fast"), capabilities=Capabilities(features=frozenset({Feature.TOOLS})))
    of = route(members=(able, member("accurate")))
    assert choose(of, request(features=frozenset({Feature.TOOLS}))).member_id == "fast"


def test_an_endpoint_is_only_asked_of_members_that_serve_it() -> None:
    remote = member("remote", capabilities=Capabilities(features_known=False, endpoints=None))
    embedding = request(endpoint=Endpoint.EMBEDDINGS)
    mixed = route(members=(*route().members, remote))
    assert choose(mixed, embedding, fresh(mixed)).member_id == "remote"
    found = refused(route(), embedding)
    assert (found.status, found.code) == (404, "unsupported_endpoint")
    assert "/v1/embeddings" in found.message


def test_unprobed_upstream_is_trusted_with_any_feature() -> None:
    of = route(
        members=(replace(member("fast"), capabilities=Capabilities(features_known=False)),),
        default_member="fast",
    )
    assert choose(of, request(features=frozenset(Feature))).reason is ChoiceReason.ONLY_CANDIDATE


@given(st.integers(1, 3000), st.floats(0, 1, exclude_max=True))
def test_auto_never_answers_from_a_member_that_cannot_hold_the_prompt(tokens: int, draw: float) -> None:
    roomy = Capabilities(features_known=False, context_tokens=2048)
    of = route(members=(member("accurate"), replace(member("fast"), capabilities=roomy)))
    found = select(POLICY, of, request(prompt_tokens=tokens), fresh(of), {}, QUIET, draw, 0.0)
    if isinstance(found, Refusal):
        assert tokens + 1 > 2048
        assert (found.param, found.code) == ("messages", "context_length_exceeded")
    else:
        assert tokens + 1 <= {"accurate": 1024, "fast": 2048}[found.member_id]


def test_member_that_holds_the_explicit_limit_too_is_preferred() -> None:
    roomy = Capabilities(features_known=False, context_tokens=4096)
    of = route(members=(member("accurate"), replace(member("fast"), capabilities=roomy)))
    assert choose(of, request(prompt_tokens=900, explicit={"max_tokens": 500})).member_id == "fast"
    assert choose(of, request(prompt_tokens=900, explicit={"max_tokens": 50})).member_id == "accurate"
    assert choose(of, request(prompt_tokens=900, explicit={"max_tokens": 9999})).member_id == "accurate"


def test_a_mere_bound_refuses_nobody() -> None:
    choice = choose(asked=request(prompt_tokens=None, prompt_tokens_bound=9000))
    assert choice.reason is ChoiceReason.ONLY_CANDIDATE


def test_unknown_prompt_length_refuses_nobody() -> None:
    assert choose(asked=request(prompt_tokens=None)).member_id == "accurate"


def test_quality_floor_is_kept() -> None:
    floor = route(quality_floor=0.8)
    shares = choose(floor, strategy=BUSY, flights=pressures(floor, accurate=200, balanced=200)).candidates
    assert {name for name, _ in shares} == {"balanced", "accurate"}
    assert refused(route(quality_floor=1.0, members=(member("fast"),)), request()).status == 503


def test_replicas_that_just_failed_are_left_out() -> None:
    choice = choose(excluded=frozenset({"accurate-0"}))
    assert choice.member_id == "balanced"
    every = frozenset({"accurate-0", "balanced-0", "fast-0"})
    assert refused(ADAPTIVE, request(), excluded=every).reason is RefusalReason.NONE_LEFT


# --- who decides without comparison ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"asked": request(off=True)}, ChoiceReason.OFF),
        ({"asked": request(principal=Principal(optimize=False))}, ChoiceReason.OFF),
        ({"control": True}, ChoiceReason.CONTROL),
        ({"strategy": None}, ChoiceReason.STOPPED),
        ({"policy": Policy(enable_ensemble=False)}, ChoiceReason.DEFAULT_ONLY),
        ({"of": route(allow_degrade=False)}, ChoiceReason.DEFAULT_ONLY),
    ],
)
def test_default_member_answers_what_is_not_optimised(options: dict[str, Any], reason: ChoiceReason) -> None:
    choice = choose(**{"flights": pressures(ADAPTIVE, accurate=500), **options})
    assert (choice.member_id, choice.reason) == ("accurate", reason)


def test_default_member_that_is_out_is_replaced_by_the_best() -> None:
    known = fresh(ADAPTIVE)
    known["accurate"] = known["accurate"]._replace(health=Health.OUT)
    assert choose(asked=request(off=True), known=known).member_id == "balanced"


# --- the strategies --------------------------------------------------------------------------------


def test_weighted_voting_follows_weight_quality_speed_and_errors() -> None:
    of = route(
        EnsembleStrategy.WEIGHTED_VOTING,
        members=(member("a", quality=0.8), member("b", quality=0.8)),
        default_member="a",
    )
    even = taught(of, {"a": 0.01, "b": 0.01})
    assert dict(choose(of, None, even).candidates)["a"] == pytest.approx(0.5)
    slower = taught(of, {"a": 0.01, "b": 0.03})
    assert dict(choose(of, None, slower).candidates)["a"] > 0.55
    heavier = replace(of, members=(of.members[0], replace(of.members[1], weight=3.0)))
    assert dict(choose(heavier, None, even).candidates)["b"] == pytest.approx(0.75)
    worse = {**even, "b": even["b"]._replace(quality=0.4)}
    assert dict(choose(of, None, worse).candidates)["a"] > 0.7
    faulty = dict(even)
    for _ in range(20):
        faulty["b"] = learn(POLICY, faulty["b"], failed("b", 10.0))
    assert dict(choose(of, None, faulty).candidates)["a"] > 0.6


def test_slow_member_gets_less_traffic_after_bare_latencies() -> None:
    of = route(
        EnsembleStrategy.BEST_OF_N,
        members=(member("a", quality=None), member("b", quality=None)),
        default_member="a",
    )
    known = fresh(of)
    for at in range(30):
        for name, total_s in (("a", 4.0), ("b", 0.1)):
            bare = succeeded(
                name,
                float(at),
                total_s=total_s,
                output_tokens=None,
                time_to_first_token_s=None,
                prompt_tokens=None,
            )
            known[name] = learn(POLICY, known[name], bare)
    assert choose(of, None, known, now_s=31.0).member_id == "b"


def test_best_of_n_takes_the_highest_utility() -> None:
    of = route(EnsembleStrategy.BEST_OF_N)
    known = taught(of, SPEEDS)
    assert choose(of, None, known).member_id == "accurate"
    assert choose(of, None, known).reason is ChoiceReason.BEST_OF_N
    drowned = pressures(of, accurate=400)
    assert choose(of, None, known, flights=drowned).member_id != "accurate"


@pytest.mark.parametrize("name", [EnsembleStrategy.BEST_OF_N, EnsembleStrategy.ADAPTIVE])
def test_preferences_change_the_choice(name: EnsembleStrategy) -> None:
    of = route(name)
    known = taught(of, SPEEDS)
    careful = request(quality_preference=1.0, speed_preference=0.5)
    hurried = request(quality_preference=0.0, speed_preference=1.0)
    assert choose(of, careful, known).member_id == "accurate"
    assert choose(of, hurried, known).member_id == "fast"
    neither = request(quality_preference=0.0, speed_preference=0.0)
    assert choose(of, neither, known).propensity > 0.9


def test_adaptive_is_accurate_when_quiet_and_fast_when_queues_grow() -> None:
    known = taught(ADAPTIVE, SPEEDS)
    quiet = choose(known=known)
    assert (quiet.member_id, quiet.reason) == ("accurate", ChoiceReason.ADAPTIVE_LOW_LOAD)
    crowded = choose(known=known, flights=pressures(ADAPTIVE, accurate=26))
    assert (crowded.member_id, crowded.reason) == ("balanced", ChoiceReason.ADAPTIVE_HIGH_LOAD)
    full = choose(known=known, flights=pressures(ADAPTIVE, accurate=30, balanced=30))
    assert full.member_id == "fast"
    drowned = choose(known=known, flights=pressures(ADAPTIVE, accurate=40, balanced=60, fast=90))
    assert drowned.member_id == "fast"
    assert choose(known=known, flights=pressures(ADAPTIVE, accurate=2)).member_id == "accurate"


def test_a_member_of_unknown_quality_ranks_as_the_mean_of_the_known() -> None:
    of = route(members=(*ADAPTIVE.members, member("new", quality=None)))
    # The mean is the quality of `balanced`: of equals the one that costs less leads.
    for each_s, leader in ((0.004, "balanced"), (0.002, "new")):
        known = taught(of, {**SPEEDS, "new": each_s})
        assert choose(of, None, known).member_id == "accurate"
        assert choose(of, None, known, flights=pressures(of, accurate=26)).member_id == leader


def test_where_no_quality_is_known_the_default_member_leads_while_there_is_room() -> None:
    of = route(members=tuple(member(name, quality=None) for name in SPEEDS), default_member="balanced")
    known = taught(of, SPEEDS)
    assert choose(of, None, known).member_id == "balanced"
    assert choose(of, None, known, flights=pressures(of, balanced=30)).member_id == "fast"


def test_adaptive_pauses_dear_members_while_a_cheaper_one_fills_up() -> None:
    known = taught(ADAPTIVE, SPEEDS)
    assert choose(known=known, flights=pressures(ADAPTIVE, fast=20)).member_id == "fast"


def test_adaptive_spares_those_already_in_flight() -> None:
    known = taught(ADAPTIVE, SPEEDS)
    slow = {**known, "fast": known["fast"]._replace(trend=30.0)}
    assert choose(known=known, flights=pressures(ADAPTIVE, fast=2)).member_id == "accurate"
    assert choose(known=slow, flights=pressures(ADAPTIVE, fast=2)).member_id != "accurate"


def test_adaptive_becomes_careful_when_answers_miss_their_objectives() -> None:
    known = taught(ADAPTIVE, SPEEDS)
    flights = pressures(ADAPTIVE, accurate=16)
    assert choose(known=known, flights=flights).member_id == "accurate"
    missing = {**known, "accurate": known["accurate"]._replace(recent=50.0, recent_misses=25.0)}
    assert choose(known=missing, flights=flights).member_id != "accurate"


def test_without_queues_the_strategy_tells_adaptive_the_load() -> None:
    known = taught(ADAPTIVE, SPEEDS)
    picks = [choose(known=known, flights={}, strategy=strategy).member_id for strategy in (QUIET, BUSY)]
    assert picks == ["accurate", "fast"]
    assert choose(known=known, flights={}, strategy=MIDDLE).propensity > 0.9


def test_work_of_other_routes_on_the_pool_counts() -> None:
    flights = {name: replace(p, pool_in_flight=50) for name, p in pressures(ADAPTIVE).items()}
    known = fresh(ADAPTIVE)
    assert choose(known=known, flights=flights).work == choose(known=known).work + 50


# --- exploration, new members, health ----------------------------------------------------------------


def test_stale_members_are_measured_again_with_a_small_share_one_at_a_time() -> None:
    known = taught(ADAPTIVE, {"accurate": 0.018})
    shares = dict(choose(known=known).candidates)
    assert shares == {"fast": 0.01, "balanced": 0.01, "accurate": pytest.approx(0.98)}
    assert choose(known=known, draw=0.005).reason is ChoiceReason.EXPLORING
    busy = dict(choose(known=known, flights=pressures(ADAPTIVE, fast=1)).candidates)
    assert busy["fast"] == 0.0
    later = taught(ADAPTIVE, SPEEDS)
    assert dict(choose(known=later).candidates)["fast"] == 0.0
    assert dict(choose(known=later, now_s=3000.0).candidates)["fast"] == 0.01


def test_exploration_of_many_members_stays_within_three_percent() -> None:
    many = tuple(member(f"m{at}", quality=0.5) for at in range(10))
    of = route(members=(*many, member("accurate")))
    assert (
        dict(choose(of, known={**fresh(of), **taught(of, {"accurate": 0.01})}).candidates)["accurate"] >= 0.97
    )


@pytest.mark.parametrize("name", EnsembleStrategy)
def test_new_member_gets_at_most_five_percent_before_it_is_measured(name: EnsembleStrategy) -> None:
    of = route(name)
    known = taught(of, {"fast": 0.002, "balanced": 0.006})
    assert dict(choose(of, None, known).candidates)["accurate"] <= 0.05 + 1e-9


def test_new_member_answers_when_no_measured_one_has_room() -> None:
    known = taught(ADAPTIVE, {"accurate": 0.018})
    assert choose(known=known, flights=pressures(ADAPTIVE, accurate=40)).member_id != "accurate"


def test_member_that_is_out_gets_nothing_until_its_probe_is_due() -> None:
    known = taught(ADAPTIVE, SPEEDS)
    known["accurate"] = known["accurate"]._replace(health=Health.OUT, probe_at_s=15.0)
    assert dict(choose(known=known).candidates)["accurate"] == 0.0
    due = choose(known=known, now_s=16.0, draw=0.97)
    assert (due.member_id, due.reason, due.propensity) == ("accurate", ChoiceReason.PROBING, 0.05)
    probing = choose(known=known, now_s=16.0, flights=pressures(ADAPTIVE, accurate=1))
    assert dict(probing.candidates)["accurate"] == 0.0


def test_member_on_its_ramp_takes_its_share_and_the_next_the_rest() -> None:
    known = taught(ADAPTIVE, SPEEDS)
    known["accurate"] = known["accurate"]._replace(health=Health.RAMPING, health_since_s=0.0)
    shares = dict(choose(known=known, now_s=10.0).candidates)
    assert shares["accurate"] == pytest.approx(0.4)
    assert shares["balanced"] == pytest.approx(0.6)


@pytest.mark.parametrize("name", EnsembleStrategy)
def test_when_everyone_is_out_everyone_serves(name: EnsembleStrategy) -> None:
    of = route(name)
    known = {n: b._replace(health=Health.OUT, probe_at_s=1e9) for n, b in taught(of, SPEEDS).items()}
    assert choose(of, None, known).reason is ChoiceReason.PANIC


@pytest.mark.parametrize("name", [EnsembleStrategy.BEST_OF_N, EnsembleStrategy.ADAPTIVE])
def test_when_everyone_is_on_a_ramp_nothing_is_lost(name: EnsembleStrategy) -> None:
    of = route(name)
    known = {n: b._replace(health=Health.RAMPING, health_since_s=9.0) for n, b in taught(of, SPEEDS).items()}
    assert sum(share for _, share in choose(of, None, known).candidates) == pytest.approx(1.0)


def test_votes_of_nothing_still_choose() -> None:
    of = route(EnsembleStrategy.WEIGHTED_VOTING)
    known = {n: b._replace(recent=1e9, recent_faults=1e9 + 2) for n, b in taught(of, SPEEDS).items()}
    assert choose(of, None, known).reason is ChoiceReason.WEIGHTED_VOTING


# --- conversations -----------------------------------------------------------------------------------


def test_ten_thousand_conversations_keep_their_member_below_overload() -> None:
    chance, moved = Random(3), 0
    for at in range(10_000):
        of = route(list(EnsembleStrategy)[at % 3])
        known = KNOWN
        asked = request(conversation_id=f"c{at}", continues=True)
        flights = pressures(of, accurate=chance.randrange(30), fast=chance.randrange(30))
        first = choose(of, asked, known, chance.random(), strategy=MIDDLE, flights=flights)
        again = choose(of, asked, known, chance.random(), strategy=MIDDLE, remembered=first.conversation)
        moved += again.member_id != first.member_id
    assert moved == 0


KNOWN = taught(ADAPTIVE, SPEEDS)


def test_conversation_is_remembered_only_where_there_is_one() -> None:
    assert choose().conversation is None
    assert choose(asked=request(conversation_id="c")).conversation == Remembered(member_id="accurate")


def test_moved_conversation_returns_once() -> None:
    asked = request(conversation_id="c", continues=True)
    home = Remembered(member_id="accurate")
    broken = {**KNOWN, "accurate": KNOWN["accurate"]._replace(health=Health.OUT, probe_at_s=1e9)}
    moved = choose(asked=asked, known=broken, remembered=home)
    assert moved.conversation == Remembered(member_id="balanced", left="accurate")
    stayed = choose(asked=asked, known=broken, remembered=moved.conversation)
    assert stayed.reason is ChoiceReason.CONVERSATION
    back = choose(asked=asked, known=KNOWN, remembered=moved.conversation)
    assert (back.member_id, back.reason) == ("accurate", ChoiceReason.CONVERSATION_RETURNED)
    assert back.conversation == Remembered(member_id="accurate", returned=True)
    again = choose(asked=asked, known=broken, remembered=back.conversation)
    for_good = choose(asked=asked, known=KNOWN, remembered=again.conversation)
    assert (for_good.member_id, for_good.reason) == (again.member_id, ChoiceReason.CONVERSATION)


def test_conversation_leaves_an_unbearable_member_under_overload_only() -> None:
    asked = request(conversation_id="c", continues=True)
    home, flights = Remembered(member_id="accurate"), pressures(ADAPTIVE, accurate=500)
    options: dict[str, Any] = {"asked": asked, "known": KNOWN, "remembered": home, "flights": flights}
    assert choose(**options, strategy=MIDDLE).member_id == "accurate"
    assert choose(**options, strategy=BUSY).member_id != "accurate"


def test_conversation_moves_when_its_member_cannot_hold_it() -> None:
    roomy = Capabilities(features_known=False, context_tokens=4096)
    of = route(members=(member("accurate"), replace(member("fast"), capabilities=roomy)))
    asked = request(conversation_id="c", continues=True, prompt_tokens=2000)
    assert choose(of, asked, remembered=Remembered(member_id="accurate")).member_id == "fast"


def test_best_of_n_leaves_a_member_that_became_six_times_slower_within_tens_of_requests() -> None:
    """Each on a device of its own: on a shared one its requests slow down everybody."""
    speeds = {"fast": 0.004, "balanced": 0.005, "accurate": 0.006}
    of = route(EnsembleStrategy.BEST_OF_N)
    of = replace(
        of,
        members=tuple(
            replace(each, replicas=(replace(each.replicas[0], pool_id=each.member_id),), quality=quality)
            for each, quality in zip(of.members, (0.9, 0.95, 1.0), strict=True)
        ),
    )
    known, taken = taught(of, speeds, count=200), []
    now = speeds | {"accurate": 6.0 * speeds["accurate"]}
    for at in range(200):
        at_s = 10.0 + 0.5 * at
        choice = select(POLICY, of, request(), known, pressures(of), at_load(0.5), 0.5, at_s)
        assert isinstance(choice, Choice)
        name = choice.member_id
        ended = succeeded(name, at_s, total_s=0.05 + 100 * now[name], time_to_first_token_s=0.05)
        known[name] = learn(POLICY, known[name], replace(ended, work=choice.work))
        taken.append(name)
    assert taken[0] == "accurate"
    assert 0 < taken.count("accurate") <= 30
