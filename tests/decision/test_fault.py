"""Whose doing a failure was: told once, asked everywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.decision.build import POLICY, failed, fresh, route, succeeded

from loadwise.decision.facts import Ending
from loadwise.decision.fault import Fault, fault_of, shown_ending
from loadwise.decision.outcome import learn, within_objectives
from loadwise.decision.preferences import preference


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (400, Fault.CLIENT),
        (404, Fault.CLIENT),
        (429, Fault.OVERLOAD),
        (500, Fault.MEMBER),
        (503, Fault.MEMBER),
        (None, Fault.MEMBER),
    ],
)
def test_a_failure_is_the_doing_of_who_its_status_says(status: int | None, fault: Fault) -> None:
    assert fault_of(failed(status=status)) is fault


@given(st.integers(100, 599), st.sampled_from([Ending.SUCCEEDED, Ending.ABANDONED]))
def test_who_did_not_fail_has_no_fault(status: int, ending: Ending) -> None:
    assert fault_of(replace(succeeded(), ending=ending, status=status)) is Fault.NOBODY


def test_what_a_client_spoilt_is_shown_as_its_own_and_teaches_nothing() -> None:
    one, spoilt = route(), failed(status=422)
    belief = fresh(one)["accurate"]
    assert shown_ending(spoilt) == "client_error"
    assert learn(POLICY, belief, spoilt) is belief
    assert within_objectives(one.objectives, spoilt) is None


def test_a_member_s_failure_is_shown_as_one() -> None:
    assert shown_ending(failed()) == "failed"
    assert within_objectives(route().objectives, failed()) is False


@pytest.mark.parametrize(("value", "number"), [("low", 0.0), (" High ", 1.0), ("0.3", 0.3), (1, 1.0)])
def test_preferences_are_words_or_numbers(value: object, number: float) -> None:
    assert preference(value) == number


@pytest.mark.parametrize("value", ["fast", -0.1, 1.1, True, None, float("nan"), [], "nan"])
def test_what_is_no_preference_is_none(value: object) -> None:
    assert preference(value) is None
