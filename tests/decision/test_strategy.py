"""What strategies promise: no flapping, steps followed, jumps at once, silence survived."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadwise.decision.facts import Policy, StrategyName
from loadwise.decision.strategy import StrategyReason, StrategyState, choose, interpolated

POLICY = Policy()
P, B, Q = StrategyName.PERFORMANCE, StrategyName.BALANCED, StrategyName.QUALITY


def names(
    scores: Iterable[float | None], every_s: float = 1.0, policy: Policy = POLICY
) -> list[StrategyName]:
    state, found = StrategyState(), []
    for at, value in enumerate(scores):
        state, chosen = choose(policy, state, value, at * every_s)
        found.append(chosen.name)
    return found


def changes(found: list[StrategyName]) -> int:
    return sum(a is not b for a, b in pairwise(found))


@pytest.mark.parametrize(("load", "name"), [(0.0, Q), (0.29, Q), (0.3, B), (0.79, B), (0.8, P), (1.0, P)])
def test_first_observation_decides_at_once(load: float, name: StrategyName) -> None:
    _, chosen = choose(POLICY, StrategyState(), load, 5.0)
    assert (chosen.name, chosen.reason, chosen.load_score) == (name, StrategyReason.FIRST, load)


def test_columns_are_the_origins() -> None:
    _, busy = choose(POLICY, StrategyState(), 0.95, 0.0)
    _, quiet = choose(POLICY, StrategyState(), 0.05, 0.0)
    assert busy.parameters == {"max_tokens": 512, "temperature": 0.7, "top_k": 40}
    assert quiet.parameters == {"max_tokens": 2048, "temperature": 0.8, "top_k": 100}
    assert (busy.compile_mode, quiet.compile_mode) == ("max-autotune", "default")


@given(st.floats(0.3, 0.8), st.floats(0.3, 0.8))
def test_balanced_lies_between_by_load(one: float, other: float) -> None:
    low, high = (interpolated(POLICY, B, load) for load in sorted((one, other)))
    assert 512 <= high.max_tokens <= low.max_tokens <= 2048
    assert 0.7 <= high.temperature <= low.temperature <= 0.8
    assert isinstance(low.max_tokens, int)
    assert isinstance(low.top_k, int)


def test_balanced_takes_the_configured_compile_mode() -> None:
    policy = Policy(compile_mode="reduce-overhead")
    assert choose(policy, StrategyState(), 0.5, 0.0)[1].compile_mode == "reduce-overhead"


def test_strategy_reads_like_a_mapping() -> None:
    _, chosen = choose(POLICY, StrategyState(), 0.95, 0.0)
    assert chosen["name"] == "performance"
    assert dict(chosen)["parameters"]["max_tokens"] == 512
    assert len(chosen) == 5
    with pytest.raises(KeyError):
        chosen["swap"]


def uniform(chance: Random, level: float) -> float:
    return level * chance.uniform(0.9, 1.1)


def gaussian(chance: Random, level: float) -> float:
    return level * chance.gauss(1.0, 0.1)


# At the thresholds, between them and the way back, and where noise is cut off at full load.
LEVELS = [0.285, 0.3, 0.315, 0.35, 0.5, 0.75, 0.775, 0.8, 0.81, 0.95]


@pytest.mark.parametrize(
    ("noise", "every_s"), [(uniform, 1.0), (uniform, 30.0), (gaussian, 1.0), (gaussian, 5.0)]
)
def test_constant_load_with_noise_changes_strategy_at_most_once_an_hour(
    noise: Callable[[Random, float], float], every_s: float
) -> None:
    for level in LEVELS:
        chance = Random(f"{level}")
        found = names([noise(chance, level) for _ in range(int(3600 / every_s))], every_s)
        assert changes(found) <= 1, level


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 1.0), st.integers(0, 2**32))
def test_constant_load_holds_at_any_level(level: float, seed: int) -> None:
    chance = Random(seed)
    assert changes(names([uniform(chance, level) for _ in range(720)], 5.0)) <= 1


STEPS = [(0.1, 0.5), (0.1, 0.9), (0.5, 0.9), (0.5, 0.1), (0.9, 0.5), (0.9, 0.1), (0.6, 0.84), (0.4, 0.2)]


@pytest.mark.parametrize(("before", "after"), STEPS)
@pytest.mark.parametrize("interval_s", [1.0, 5.0, 30.0])
def test_a_step_is_followed_within_ten_seconds_or_an_interval(
    before: float, after: float, interval_s: float
) -> None:
    policy = Policy(tuning_interval_s=interval_s, dwell_s=interval_s)
    wanted = choose(policy, StrategyState(), after, 0.0)[1].name
    quiet = int(120 / interval_s)
    within = int(max(10.0, interval_s) / interval_s)
    found = names([before] * quiet + [after] * (within + 3), interval_s, policy)
    assert found[quiet - 1] is choose(policy, StrategyState(), before, 0.0)[1].name
    assert all(name is wanted for name in found[quiet + within - 1 :])
    assert changes(found) <= 2


@pytest.mark.parametrize("seed", range(10))
def test_a_step_through_noise_is_followed_within_ten_seconds(seed: int) -> None:
    policy, chance = Policy(tuning_interval_s=5.0, dwell_s=5.0), Random(seed)
    found = names(
        [uniform(chance, 0.5) for _ in range(300)] + [uniform(chance, 0.92) for _ in range(12)], 1.0, policy
    )
    assert found[299] is B
    assert found[309] is P


def test_one_score_far_off_changes_nothing_where_the_next_comes_in_time() -> None:
    chance = Random(1)
    scores = [uniform(chance, 0.9) for _ in range(60)]
    assert changes(names([*scores, 0.66, *scores], 5.0)) == 0
    assert changes(names([*scores, *[0.66] * 6], 5.0)) == 1


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_noise_at_high_load_is_no_jump(seed: int) -> None:
    chance = Random(seed)
    assert changes(names([0.95 * chance.gauss(1.0, 0.1) for _ in range(3600)])) == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("before", "after"), [(0.2, 0.95), (0.95, 0.1), (0.5, 0.1)])
def test_a_jump_through_noise_is_followed_at_once(before: float, after: float, seed: int) -> None:
    chance = Random(seed)
    found = names(
        [gaussian(chance, before) for _ in range(300)] + [gaussian(chance, after) for _ in range(3)]
    )
    assert found[299] is choose(POLICY, StrategyState(), before, 0.0)[1].name
    assert found[300] is choose(POLICY, StrategyState(), after, 0.0)[1].name


def test_a_jump_skips_the_dwell() -> None:
    state, _ = choose(POLICY, StrategyState(), 0.1, 0.0)
    state, chosen = choose(POLICY, state, 0.5, 1.0)
    assert (chosen.name, chosen.reason) == (B, StrategyReason.JUMP)


def test_small_changes_wait_for_the_dwell() -> None:
    state, first = choose(POLICY, StrategyState(), 0.29, 0.0)
    found, reasons = [first.name], set()
    for at in range(1, 40):
        state, chosen = choose(POLICY, state, 0.45, float(at))
        found.append(chosen.name)
        reasons.add(chosen.reason)
    assert found[29] is Q
    assert found[31] is B
    assert {StrategyReason.DWELLING, StrategyReason.LOAD} <= reasons


def test_a_jump_in_each_direction_skips_once_until_a_dwell_has_passed() -> None:
    found = names([0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9])
    assert found[1] is P
    assert found[2] is Q
    assert changes(found) == 2


def test_jumps_skip_again_after_a_whole_dwell() -> None:
    found = names([0.1] + [0.9] * 40 + [0.5])
    assert (found[1], found[-1]) == (P, B)


@given(st.lists(st.none() | st.floats(allow_nan=True, allow_infinity=True), max_size=60))
def test_any_sensor_gives_a_strategy_inside_the_origins_table(values: list[float | None]) -> None:
    state = StrategyState()
    for at, value in enumerate(values):
        state, chosen = choose(POLICY, state, value, float(at))
        assert 512 <= chosen.parameters["max_tokens"] <= 2048
        assert chosen.load_score is None or 0.0 <= chosen.load_score <= 1.0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=80))
def test_changes_closer_than_the_dwell_are_jumps(values: list[float]) -> None:
    state, last_s, before = StrategyState(), 0.0, None
    for at, value in enumerate(values):
        state, chosen = choose(POLICY, state, value, float(at))
        if before is not None and chosen.name is not before:
            assert chosen.reason is StrategyReason.JUMP or at - last_s >= POLICY.dwell_s
            last_s = at
        before = chosen.name


def test_silence_holds_and_then_falls_back_to_balanced() -> None:
    state, _ = choose(POLICY, StrategyState(), 0.95, 0.0)
    state, held = choose(POLICY, state, None, 20.0)
    assert (held.name, held.reason, held.load_score) == (P, StrategyReason.UNKNOWN_LOAD, None)
    state, safe = choose(POLICY, state, float("nan"), 31.0)
    assert (safe.name, safe.reason) == (B, StrategyReason.STALE_LOAD)
    state, safe = choose(POLICY, state, None, 60.0)
    assert safe.name is B
    _, back = choose(POLICY, state, 0.95, 61.0)
    assert (back.name, back.reason) == (P, StrategyReason.FIRST)


def test_no_score_ever_is_balanced_at_middle_load() -> None:
    _, chosen = choose(POLICY, StrategyState(), None, 0.0)
    assert (chosen.name, chosen.reason) == (B, StrategyReason.UNKNOWN_LOAD)
    assert chosen.parameters["max_tokens"] == 1280


def test_a_clock_that_goes_back_changes_nothing() -> None:
    state, _ = choose(POLICY, StrategyState(), 0.5, 100.0)
    _, chosen = choose(POLICY, state, 0.5, 50.0)
    assert (chosen.name, chosen.reason) == (B, StrategyReason.HOLDING)
