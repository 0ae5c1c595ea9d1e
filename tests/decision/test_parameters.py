"""What tuning promises the client: explicit values win, supplied ones do no harm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.facts import Capabilities, Endpoint, Feature, Policy, Principal, Range
from loadwise.decision.lengths import LengthSketch
from loadwise.decision.numbers import INTEGERS
from loadwise.decision.parameters import TuningReason, as_bound, tune

from .build import ABLE, POLICY, at_load, member, request

BUSY, QUIET = at_load(0.95), at_load(0.1)
REMOTE = member(capabilities=Capabilities(features_known=False, context_tokens=4096))


def answers(count: int, tokens: int = 100) -> LengthSketch:
    sketch = LengthSketch()
    for _ in range(count):
        sketch = sketch.add(tokens)
    return sketch


def test_embedded_member_takes_the_origins_table() -> None:
    tuned = tune(POLICY, BUSY, request(), member(), LengthSketch())
    assert tuned.changes == {"max_tokens": 512, "temperature": 0.7, "top_k": 40}
    assert tuned.reason is TuningReason.STRATEGY
    assert set(tuned.because.values()) == {TuningReason.STRATEGY}


def test_explicit_values_win() -> None:
    own = {"max_tokens": 4, "temperature": 0.0, "top_k": 1}
    tuned = tune(POLICY, BUSY, request(explicit=own), member(), LengthSketch())
    assert (tuned.changes, tuned.reason) == ({}, TuningReason.EXPLICIT)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_limit_of_either_name_is_left_alone(field: str) -> None:
    tuned = tune(POLICY, BUSY, request(explicit={field: 7}), member(), LengthSketch())
    assert "max_tokens" not in tuned.changes


def test_completions_keep_openais_default_length() -> None:
    tuned = tune(POLICY, BUSY, request(endpoint=Endpoint.COMPLETION), member(), LengthSketch())
    assert tuned.changes == {"temperature": 0.7, "top_k": 40}


def test_limit_stays_within_the_context_left() -> None:
    tuned = tune(POLICY, QUIET, request(prompt_tokens=1000), member(), LengthSketch())
    assert tuned.changes["max_tokens"] == 24
    bound = tune(
        POLICY, QUIET, request(prompt_tokens=None, prompt_tokens_bound=1004), member(), LengthSketch()
    )
    assert bound.changes["max_tokens"] == 20


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_tokens": None},
        {"prompt_tokens": 1024},
        {"n": 2},
        {"features": frozenset({Feature.TOOLS})},
        {"features": frozenset({Feature.TOOL_CHOICE})},
        {"features": frozenset({Feature.RESPONSE_FORMAT})},
        {"features": frozenset({Feature.REASONING_EFFORT})},
    ],
)
def test_no_limit_is_supplied_where_it_could_do_harm(changes: dict[str, Any]) -> None:
    assert "max_tokens" not in tune(POLICY, BUSY, request(**changes), member(), answers(300)).changes


def test_reasoning_member_needs_a_thinking_budget() -> None:
    thinker = member(capabilities=replace(ABLE, features=frozenset({Feature.REASONING_EFFORT})))
    assert "max_tokens" not in tune(POLICY, BUSY, request(), thinker, answers(300)).changes
    budget = request(explicit={"thinking_token_budget": 64})
    assert tune(POLICY, BUSY, budget, thinker, answers(300)).changes["max_tokens"] == 512


def test_other_servers_get_only_a_limit_and_only_after_two_hundred_answers() -> None:
    assert tune(POLICY, BUSY, request(), REMOTE, answers(199)).changes == {}
    tuned = tune(POLICY, BUSY, request(), REMOTE, answers(200))
    assert tuned.changes == {"max_tokens": 512}
    unknown = member(capabilities=Capabilities(features_known=False))
    assert tune(POLICY, BUSY, request(), unknown, answers(300)).reason is TuningReason.NOTHING_SAFE


@given(st.integers(1, 4000), st.integers(1, 4200))
def test_a_supplied_limit_lies_between_p99_and_the_context_left(tokens: int, prompt: int) -> None:
    seen = answers(200, tokens)
    limit = tune(POLICY, BUSY, request(prompt_tokens=prompt), REMOTE, seen).changes.get("max_tokens")
    if limit is not None:
        assert isinstance(limit, int)
        assert tokens <= (seen.p99_tokens or 0) <= limit <= 4096 - prompt


def test_a_limit_never_undercuts_min_tokens() -> None:
    tuned = tune(POLICY, BUSY, request(explicit={"min_tokens": 600}), member(), LengthSketch())
    assert tuned.changes["max_tokens"] == 600


def test_sampling_goes_to_other_servers_only_when_asked_for_and_inside_ranges() -> None:
    policy = Policy(
        tune_sampling=True, ranges={"temperature": Range(low=0.2, high=0.5), "top_k": Range(low=50, high=60)}
    )
    tuned = tune(policy, BUSY, request(), REMOTE, LengthSketch())
    assert tuned.changes == {"temperature": 0.5, "top_k": 50}
    assert tune(Policy(tune_sampling=True), BUSY, request(), REMOTE, LengthSketch()).changes == {}


def test_greedy_sampling_is_supplied_for_several_choices_only_where_it_is_not_refused() -> None:
    policy = Policy(tune_sampling=True, ranges={"temperature": Range(low=0.0, high=0.0)})
    able = member(capabilities=replace(ABLE, features=frozenset({Feature.N, Feature.GREEDY_CHOICES})))
    assert tune(policy, BUSY, request(n=2), REMOTE, LengthSketch()).changes == {}
    assert tune(policy, BUSY, request(n=1), REMOTE, LengthSketch()).changes == {"temperature": 0.0}
    assert tune(policy, BUSY, request(n=2), able, LengthSketch()).changes["temperature"] == 0.0


def test_a_ceiling_that_makes_sampling_greedy_is_a_need_of_several_choices() -> None:
    policy = Policy(ceilings={"temperature": 0.0})
    several = request(n=2, features=frozenset({Feature.N}), explicit={"n": 2, "temperature": 0.7})
    assert as_bound(policy, several).features == {Feature.N, Feature.GREEDY_CHOICES}
    assert as_bound(Policy(ceilings={"temperature": 0.5}), several) is several
    assert as_bound(policy, replace(several, features=frozenset())).features == set()


def test_top_k_is_not_sent_to_who_does_not_take_it() -> None:
    plain = member(capabilities=replace(ABLE, features=frozenset()))
    assert "top_k" not in tune(POLICY, BUSY, request(), plain, LengthSketch()).changes


def test_range_below_p99_supplies_nothing() -> None:
    policy = Policy(ranges={"max_tokens": Range(low=1, high=50)})
    assert "max_tokens" not in tune(policy, BUSY, request(), REMOTE, answers(300)).changes


def test_ceilings_bind_both_names_of_the_limit_even_when_tuning_is_off() -> None:
    policy = Policy(ceilings={"max_tokens": 512.0})
    own = request(explicit={"max_completion_tokens": 900}, off=True)
    tuned = tune(policy, BUSY, own, member(), LengthSketch())
    assert tuned.changes == {"max_completion_tokens": 512}
    assert isinstance(tuned.changes["max_completion_tokens"], int)
    assert tuned.reason is TuningReason.CEILING


def test_lower_of_two_ceilings_binds_explicit_and_supplied_values() -> None:
    key = Principal(ceilings={"max_tokens": 100, "top_k": 20})
    policy = Policy(ceilings={"max_tokens": 300, "temperature": 0.5})
    tuned = tune(policy, BUSY, request(principal=key, explicit={"top_k": 0}), member(), LengthSketch())
    assert tuned.changes == {"top_k": 20, "max_tokens": 100, "temperature": 0.5}
    assert tuned.reason is TuningReason.CEILING_AND_STRATEGY
    assert tuned.because["top_k"] is TuningReason.CEILING


@pytest.mark.parametrize(
    ("endpoint", "name"), [("MESSAGES", "max_tokens"), ("RESPONSES", "max_output_tokens")]
)
def test_what_is_passed_on_is_never_supplied_with_parameters_but_keeps_to_ceilings(endpoint, name) -> None:
    policy = Policy(ceilings={"max_tokens": 512})
    asked = request(endpoint=Endpoint[endpoint], explicit={name: 1000})
    tuned = tune(policy, at_load(0.9), asked, member(), LengthSketch())
    assert dict(tuned.changes) == {name: 512}
    assert not tune(policy, at_load(0.9), replace(asked, explicit={}), member(), LengthSketch()).changes


def test_values_under_their_ceiling_stay() -> None:
    policy = Policy(ceilings={"max_tokens": 300})
    tuned = tune(
        policy, BUSY, request(explicit={"max_tokens": 300, "temperature": 1}), member(), LengthSketch()
    )
    assert tuned.changes == {"top_k": 40}


def test_off_and_stopped_say_so_and_touch_nothing() -> None:
    off = tune(POLICY, BUSY, request(off=True), member(), LengthSketch())
    key = tune(POLICY, BUSY, request(principal=Principal(optimize=False)), member(), LengthSketch())
    stopped = tune(POLICY, None, request(), member(), LengthSketch())
    static = tune(Policy(enable_dynamic_tuning=False), BUSY, request(), member(), LengthSketch())
    assert [t.changes for t in (off, key, stopped, static)] == [{}] * 4
    assert [t.reason for t in (off, key, stopped, static)] == [
        TuningReason.OFF,
        TuningReason.OFF,
        TuningReason.STOPPED,
        TuningReason.STOPPED,
    ]


names = st.sampled_from(["max_tokens", "max_completion_tokens", "temperature", "top_k", "seed", "min_tokens"])


@given(st.dictionaries(names, st.integers(0, 5000)), st.floats(0, 1), st.booleans())
def test_no_explicit_value_is_ever_changed_without_a_ceiling(
    explicit: dict[str, int], load: float, embedded: bool
) -> None:
    target = member() if embedded else REMOTE
    changes = tune(POLICY, at_load(load), request(explicit=explicit), target, answers(200)).changes
    assert not set(changes) & set(explicit)
    assert all(isinstance(value, int) for name, value in changes.items() if name in INTEGERS)
