"""Where a request's time went: the stages add up, and nothing is told apart that could not be seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.stages import queued_s, shares

from .build import succeeded

SECONDS = st.floats(0.0, 1e4)


@given(SECONDS, SECONDS, SECONDS, SECONDS)
def test_queue_prefill_and_decode_add_up_to_the_whole(
    first_s: float, more_s: float, wait_s: float, read_s: float
) -> None:
    queue_s = queued_s(first_s, wait_s, read_s)
    total_s = first_s + more_s
    found = shares(succeeded(total_s=total_s, time_to_first_token_s=first_s, queue_s=queue_s, gateway_s=0.5))
    parts = [part for part in found[1:] if part is not None]
    assert len(parts) == 3
    assert min(parts) >= 0.0
    assert sum(parts) == pytest.approx(total_s, abs=1e-6)
    assert found.gateway_s == 0.5


@given(SECONDS, SECONDS)
def test_who_found_a_free_place_waited_for_none(first_s: float, read_s: float) -> None:
    assert queued_s(first_s, 0.0, read_s) == 0.0


def test_where_places_are_unknown_or_the_first_token_unseen_nothing_is_told_apart() -> None:
    assert queued_s(1.0, 0.5, None) is None
    assert queued_s(None, 0.5, 0.1) is None
    assert shares(succeeded(time_to_first_token_s=None)) == (None, None, None, None)
