"""Intervals that stay valid at every look."""

from __future__ import annotations

from math import sqrt
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.intervals import around, errors_away, students


@pytest.mark.parametrize(
    ("normal", "degrees", "quantile"),
    [(1.959964, 10.0, 2.2281), (1.959964, 4.0, 2.7764), (3.0, 9.0, 4.0942), (3.0, 1e6, 3.0)],
)
def test_few_degrees_of_freedom_widen_as_students_t_does(
    normal: float, degrees: float, quantile: float
) -> None:
    assert students(normal, degrees) == pytest.approx(quantile, rel=0.06)


@given(evidence=st.floats(0.01, 1e6), degrees=st.floats(1.0, 1e6))
def test_looking_often_costs_more_than_looking_once(evidence: float, degrees: float) -> None:
    assert errors_away(evidence, degrees) > 1.96


def test_the_band_is_narrowest_where_it_was_asked_to_be() -> None:
    """In standard errors it grows slowly, in the mean's unit it falls throughout."""
    scaled = [errors_away(at, 1e9) / sqrt(at) for at in (0.1, 0.5, 1.0, 2.0, 10.0, 100.0)]
    assert scaled == sorted(scaled, reverse=True)
    assert errors_away(1.0, 1e9) == pytest.approx(3.04, abs=0.01)


def test_a_walk_without_drift_stays_inside_at_every_look() -> None:
    """One in twenty may leave; each walk is looked at after each of a thousand steps."""
    chance, left = Random(11), 0
    for _ in range(200):
        total = squares = 0.0
        for step in range(1, 1001):
            value = chance.gauss(0.0, 1.0)
            total, squares = total + value, squares + value * value
            if step < 10:
                continue
            variance = (squares - total * total / step) / (step - 1)
            found = around(total / step, sqrt(variance / step), evidence=step / 30.0, degrees=step - 1.0)
            if not found.low <= 0.0 <= found.high:
                left += 1
                break
    assert left <= 10
