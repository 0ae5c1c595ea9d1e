"""The gain between blocks: what counts, what it is compared with, and what its interval promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import log
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.improvement import (
    FIRST_LOOK,
    Amount,
    Block,
    Improvement,
    differences,
    gains,
    improvement,
)


def logs(seconds: float, requests: int) -> Amount:
    return Amount(requests, requests * log(seconds))


def weeks(
    on: float, off: float, strata: int = 40, *, seed: int = 1, requests: int = 200, of: int = 5
) -> list[Block]:
    """Strata of `of` blocks, the last unoptimised; each request is within with its kind's chance."""
    chance, found = Random(seed), []
    for number in range(strata * of):
        control = number % of == of - 1
        within = sum(chance.random() < (off if control else on) for _ in range(requests))
        found.append(
            Block(
                stratum=number // of,
                control=control,
                within=Amount(requests, within),
                first_token=logs(0.8 if control else 0.4, requests),
            )
        )
    return found


def measured(blocks: Sequence[Block]) -> Improvement:
    found = improvement(blocks)
    assert found is not None
    return found


def test_nothing_is_said_before_the_first_look() -> None:
    assert improvement([]) is None
    assert improvement(weeks(0.9, 0.5, FIRST_LOOK - 1)) is None
    assert improvement(weeks(0.9, 0.5, FIRST_LOOK)) is not None
    assert gains([]).time_to_first_token is None


def test_strata_without_requests_of_either_kind_say_nothing() -> None:
    quiet = [replace(block, within=Amount()) for block in weeks(0.9, 0.5) if block.control]
    optimised = [block for block in weeks(0.9, 0.5) if not block.control]
    blocks = sorted([*quiet, *optimised], key=lambda block: block.stratum)
    assert improvement(blocks) is None


def test_a_real_gain_is_found_with_its_parts() -> None:
    found = measured(weeks(0.9, 0.5))
    assert found.low > 0.3
    assert found.value == pytest.approx(0.4, abs=0.03)
    assert found.value == pytest.approx(found.optimised_fraction - found.unoptimised_fraction)
    assert (found.strata, found.requests) == (40, 40_000)


def test_a_loss_is_found_too() -> None:
    assert measured(weeks(0.5, 0.9)).high < -0.3


def test_latency_is_a_ratio_of_geometric_means() -> None:
    ratio = gains(weeks(0.9, 0.9)).time_to_first_token
    assert ratio is not None
    assert ratio.value == pytest.approx(0.5)
    assert gains(weeks(0.9, 0.9)).time_per_output_token is None


def test_one_busy_stratum_among_quiet_ones_says_nothing_of_latency() -> None:
    blocks = [
        Block(stratum=number, control=control, first_token=logs(0.8 if control else 0.4, requests))
        for number, requests in enumerate([1] * 9 + [2000])
        for control in (False, True)
    ]
    # The quiet ones differ among each other.
    blocks[0] = replace(blocks[0], first_token=logs(4.0, 1))
    found = gains(blocks).time_to_first_token
    assert found is not None
    assert found.low < 0.001 < 1000.0 < found.high < 1e7


def test_equal_policies_seldom_look_different_at_any_of_many_looks() -> None:
    wrong = 0
    for seed in range(60):
        blocks = weeks(0.8, 0.8, 40, seed=seed, requests=40)
        looks = [measured(blocks[: 5 * strata]) for strata in range(FIRST_LOOK, 41)]
        wrong += any(look.low > 0.0 or look.high < 0.0 for look in looks)
    assert wrong <= 3


def test_a_load_that_follows_the_hour_of_day_is_no_gain() -> None:
    """Blocks of a busy stratum are compared with that stratum only."""
    blocks = [
        replace(block, within=Amount(1000 if busy else 10, 500 if busy else 10))
        for block in weeks(1.0, 1.0)
        for busy in [block.stratum % 2 == 0]
    ]
    assert measured(blocks).value == pytest.approx(0.0)


def test_a_burst_that_hit_one_kind_by_chance_is_judged_by_like_load() -> None:
    """Twice the load makes half of the requests miss, and unoptimised blocks meet it more often."""
    chance, blocks = Random(3), []
    for number in range(5 * 60):
        control = number % 5 == 4
        burst = chance.random() < (0.5 if control else 0.2)
        within = Amount(400, 200) if burst else Amount(200, 200)
        blocks.append(Block(stratum=number // 5, control=control, within=within))
    found = measured(blocks)
    raw = [block.within for block in blocks if not block.control], [b.within for b in blocks if b.control]
    shares = [sum(a.total for a in kind) / sum(a.requests for a in kind) for kind in raw]
    assert shares[0] - shares[1] > 0.1
    assert abs(found.value) < 0.02


class TestSuspension:
    def blocks(self) -> list[Block]:
        """Every fourth unoptimised block was cut in the middle."""
        cut = []
        for block in weeks(0.9, 0.9):
            if block.control and block.stratum % 4 == 0:
                block = replace(block, within=Amount(100, 90), first_token=logs(0.8, 100), suspended=100)
            cut.append(block)
        return cut

    def test_suspended_requests_count_as_missed_and_the_other_extreme_is_shown(self) -> None:
        found = measured(self.blocks())
        assert found.value == pytest.approx(0.9 / 8, abs=0.03)
        assert found.if_suspended_within == pytest.approx(-0.1 / 8, abs=0.03)

    def test_the_interval_holds_for_both_extremes_so_that_missed_requests_prove_nothing(self) -> None:
        blocks = self.blocks()
        found = measured(blocks)
        within = measured(
            [replace(b, within=b.within.plus(Amount(b.suspended, b.suspended)), suspended=0) for b in blocks]
        )
        missed = measured(
            [replace(b, within=b.within.plus(Amount(b.suspended, 0.0)), suspended=0) for b in blocks]
        )
        assert found.low == pytest.approx(min(within.low, missed.low))
        assert found.high == pytest.approx(max(within.high, missed.high))
        assert found.low <= 0.0

    def test_latencies_reach_from_the_fastest_block_to_the_slowest(self) -> None:
        plain = gains(weeks(0.9, 0.9)).time_to_first_token
        cut = gains(self.blocks()).time_to_first_token
        assert plain is not None
        assert cut is not None
        assert cut.low <= plain.low
        assert cut.high > plain.high + 0.05

    def test_blocks_are_counted_with_those_cut_short(self) -> None:
        found = gains(self.blocks())
        assert (found.control_blocks, found.suspended_blocks, found.strata) == (40, 10, 40)


class TestLost:
    """Requests that were open when the process died; nobody saw how they ended."""

    def blocks(self, lost: int = 20, *, control: bool = False) -> list[Block]:
        return [
            replace(b, lost=lost) if b.control is control and b.stratum % 4 == 0 else b
            for b in weeks(0.9, 0.9)
        ]

    def test_they_count_as_missed_on_their_side_and_the_interval_spans_both_extremes(self) -> None:
        plain = measured(weeks(0.9, 0.9))
        for control in (False, True):
            found = measured(self.blocks(control=control))
            assert (found.value > plain.value) is control
            assert found.low < plain.low or control
            assert found.high > plain.high or not control
            assert found.low <= plain.value <= found.high
            assert found.requests == plain.requests + 20 * 10 * (1 if control else 4)
        assert gains(self.blocks()).lost_requests == 800

    def test_deaths_prove_no_gain_of_equal_policies(self) -> None:
        """The process dies more often under load, and takes with it the rest of the block."""
        wrong = 0
        for seed in range(40):
            chance, cut = Random(seed), []
            for block in weeks(0.9, 0.9, seed=seed):
                share = chance.random() if chance.random() < 0.2 else 1.0
                seen = int(200 * share)
                within = sum(chance.random() < 0.9 for _ in range(seen))
                lost = 5 if share < 1.0 else 0
                cut.append(replace(block, within=Amount(seen, within), lost=lost))
            looks = [measured(cut[: 5 * strata]) for strata in range(FIRST_LOOK, 41)]
            wrong += any(look.low > 0.0 or look.high < 0.0 for look in looks)
        assert wrong <= 2


AMOUNTS = st.builds(
    lambda requests, share: Amount(requests, int(requests * share)), st.integers(0, 500), st.floats(0.0, 1.0)
)
BLOCKS = st.lists(
    st.tuples(AMOUNTS, AMOUNTS, st.integers(0, 50), st.integers(0, 20)), min_size=FIRST_LOOK, max_size=40
).map(
    lambda strata: [
        block
        for number, (on, off, suspended, lost) in enumerate(strata)
        for block in (
            Block(stratum=number, control=False, within=on, lost=lost),
            Block(stratum=number, control=True, within=off, suspended=suspended, lost=lost // 2),
        )
    ]
)


@given(blocks=BLOCKS)
def test_figures_stay_in_range_and_in_order(blocks: list[Block]) -> None:
    found = improvement(blocks)
    if found is None:
        assert len(differences(blocks, lambda b: b.within.plus(Amount(b.suspended + b.lost)))) < FIRST_LOOK
        return
    assert -1.0 <= found.low <= found.if_suspended_within <= found.high <= 1.0
    assert found.low <= found.value <= found.high
    assert 0.0 <= found.unoptimised_fraction <= 1.0


@given(blocks=BLOCKS)
def test_swapping_the_kinds_turns_the_gain_around(blocks: list[Block]) -> None:
    whole = [replace(block, suspended=0) for block in blocks]
    one, other = improvement(whole), improvement([replace(b, control=not b.control) for b in whole])
    assert (one is None) is (other is None)
    if one is not None and other is not None:
        assert other.value == pytest.approx(-one.value, abs=1e-9)


@given(factor=st.floats(0.1, 10.0))
def test_a_unit_of_time_changes_no_ratio(factor: float) -> None:
    def scaled(block: Block) -> Block:
        requests, total = block.first_token
        return replace(block, first_token=Amount(requests, total + requests * log(factor)))

    blocks = weeks(0.9, 0.9, FIRST_LOOK)
    one, other = gains(blocks).time_to_first_token, gains(list(map(scaled, blocks))).time_to_first_token
    assert one is not None
    assert other is not None
    assert other.value == pytest.approx(one.value)
