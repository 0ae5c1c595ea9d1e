"""The sketch of answer lengths never understates, and stays small."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.lengths import BUCKETS, FULL, GROWTH, LengthSketch, bucket


def sketched(lengths: list[int]) -> LengthSketch:
    sketch = LengthSketch()
    for tokens in lengths:
        sketch = sketch.add(tokens)
    return sketch


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=150), st.floats(0.01, 1.0))
def test_quantiles_lie_at_most_ten_percent_above_the_truth(lengths: list[int], fraction: float) -> None:
    ordered = sorted(lengths)
    rank = max(1, -(-int(fraction * len(ordered) * 1_000_000) // 1_000_000))
    truth = ordered[min(len(ordered), rank) - 1]
    found = sketched(lengths).quantile(fraction)
    assert found is not None
    assert found >= int(truth / GROWTH)
    assert found <= ordered[-1] * GROWTH + 1


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_p99_of_few_answers_is_the_longest(lengths: list[int]) -> None:
    p99 = sketched(lengths).p99_tokens
    assert p99 is not None
    assert max(lengths) <= p99 <= max(lengths) * GROWTH + 1


def test_nothing_seen_has_no_quantile() -> None:
    assert LengthSketch().quantile(0.5) is None
    assert LengthSketch().p99_tokens is None


def test_lengths_beyond_the_last_bucket_count_in_it() -> None:
    assert bucket(10**9) == BUCKETS - 1
    assert bucket(0) == 0
    assert sketched([10**9]).total == 1


def test_old_answers_fade_when_the_sketch_is_full() -> None:
    sketch = LengthSketch()
    for _ in range(FULL):
        sketch = sketch.add(10)
    assert sketch.total == FULL // 2
    assert sketch.quantile(0.5) == sketch.p99_tokens
