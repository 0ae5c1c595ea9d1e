"""Errors and quality between randomised conversations."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.comparison import FIRST_LOOK, GROUPS, Compared, compared
from loadwise.decision.improvement import Amount


def groups(share: float, requests: int, seed: int) -> list[Amount]:
    """Requests of single turns, each failing with the chance `share`."""
    chance = Random(seed)
    amounts = [Amount()] * GROUPS
    for _ in range(requests):
        at = chance.randrange(GROUPS)
        amounts[at] = amounts[at].plus(Amount(1.0, float(chance.random() < share)))
    return amounts


def seen(found: Compared) -> tuple[float, float]:
    assert found.difference is not None
    return found.difference.low, found.difference.high


def test_nothing_is_said_before_the_first_look() -> None:
    found = compared(groups(0.1, 5000, 1), groups(0.1, FIRST_LOOK - 1, 2))
    assert found.difference is None
    assert found.requests_unoptimised == FIRST_LOOK - 1
    assert found.unoptimised is not None
    assert compared([Amount()], [Amount()]).optimised is None


def test_more_errors_are_found() -> None:
    low, _ = seen(compared(groups(0.2, 5000, 1), groups(0.02, 1000, 2)))
    assert low > 0.1


def test_equal_error_rates_seldom_look_different() -> None:
    wrong = 0
    for seed in range(100):
        low, high = seen(compared(groups(0.1, 2000, seed), groups(0.1, 300, 1000 + seed)))
        wrong += low > 0.0 or high < 0.0
    assert wrong <= 3


def test_requests_of_one_conversation_count_as_less_than_as_many_conversations() -> None:
    """Two conversations of a hundred failures prove less than two hundred failures of their own."""
    alone, together = groups(0.1, 2000, 1), [Amount(20, 0)] * GROUPS
    together[0], together[1] = Amount(100, 100), Amount(100, 100)
    spread = seen(compared(together, groups(0.0, 2000, 2)))
    single = seen(compared(alone, groups(0.0, 2000, 2)))
    assert spread[1] - spread[0] > 3 * (single[1] - single[0])


def test_an_error_that_was_never_seen_is_not_impossible() -> None:
    low, high = seen(compared(groups(0.0, 150, 1), groups(0.0, 150, 2)))
    assert low < -0.01
    assert high > 0.01


@given(
    on=st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1)), min_size=GROUPS, max_size=GROUPS),
    off=st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1)), min_size=GROUPS, max_size=GROUPS),
)
def test_the_difference_lies_in_its_interval(
    on: list[tuple[int, float]], off: list[tuple[int, float]]
) -> None:
    found = compared([Amount(n, n * x) for n, x in on], [Amount(n, n * x) for n, x in off])
    if found.difference is not None:
        assert found.optimised is not None
        assert found.unoptimised is not None
        assert -1.0 <= found.difference.low <= found.difference.value <= found.difference.high <= 1.0
        assert found.difference.value == pytest.approx(found.optimised - found.unoptimised)
