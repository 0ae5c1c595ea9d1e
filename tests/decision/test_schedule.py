"""The order of blocks and the draw of conversations: by chance, with the share kept, the same everywhere."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.schedule import Schedule, drawn

SHARES = st.sampled_from([0.01, 0.02, 0.1, 0.15, 0.2, 0.25, 1 / 3, 0.37, 0.5])


def schedule(share: float = 0.1, seed: int = 0) -> Schedule:
    return Schedule(block_s=600.0, burn_in_s=120.0, share=share, seed=seed)


@given(share=SHARES, seed=st.integers(0, 10**6), stratum=st.integers(0, 10**6))
def test_every_stratum_keeps_the_share(share: float, seed: int, stratum: int) -> None:
    plan = schedule(share, seed)
    length = plan.stratum.denominator
    blocks = range(stratum * length, (stratum + 1) * length)
    assert {plan.stratum_of(block) for block in blocks} == {stratum}
    assert Fraction(sum(map(plan.control, blocks)), length) == plan.stratum
    assert float(plan.stratum) == pytest.approx(share, abs=0.005)


def test_every_place_in_a_stratum_is_as_likely() -> None:
    plan = schedule()
    places = [0] * 10
    for block in range(20_000):
        places[block % 10] += plan.control(block)
    assert min(places) > 140
    assert max(places) < 260


def test_seeds_give_different_orders_and_one_seed_always_the_same() -> None:
    orders = [[schedule(seed=seed).control(block) for block in range(200)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_no_share_leaves_everything_optimised() -> None:
    assert not any(map(schedule(0.0).control, range(100)))


def test_the_first_stretch_of_a_block_is_dropped() -> None:
    plan = schedule()
    assert [plan.settled(at) for at in (0.0, 119.9, 120.0, 599.9, 600.0)] == [False, False, True, True, False]
    assert [plan.block_of(at) for at in (0.0, 599.9, 600.0)] == [0, 0, 1]


def test_draws_are_even_and_independent_between_salts() -> None:
    units = [f"conversation-{number}" for number in range(4000)]
    one = [drawn("a", unit) < 0.5 for unit in units]
    other = [drawn("b", unit) < 0.5 for unit in units]
    assert sum(one) == pytest.approx(2000, abs=130)
    assert sum(a and b for a, b in zip(one, other, strict=True)) == pytest.approx(1000, abs=110)
    assert [drawn("a", unit) for unit in units[:9]] == [drawn("a", unit) for unit in units[:9]]


@given(unit=st.text())
def test_any_text_can_be_drawn_by(unit: str) -> None:
    assert 0.0 <= drawn("salt", unit) < 1.0
