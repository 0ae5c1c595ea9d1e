"""When an unoptimised block must end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.burn import FAST, SLOW, WINDOWS_S, Share, passed
from loadwise.decision.suspension import Burning, SuspendReason, suspension, would_page


@pytest.mark.parametrize(
    ("load", "errors", "answers", "reason"),
    [
        (None, 0, 0, None),
        (0.94, 5, 100, None),
        (0.95, 0, 0, SuspendReason.OVERLOADED),
        (0.5, 6, 100, SuspendReason.ERRORS),
        (0.5, 19, 19, None),
        (None, 20, 20, SuspendReason.ERRORS),
    ],
)
def test_overload_and_errors_beyond_the_budget_end_it(
    load: float | None, errors: int, answers: int, reason: SuspendReason | None
) -> None:
    found = suspension(load_score=load, overloaded_at=0.95, errors=errors, answers=answers, error_budget=0.05)
    assert found is reason


def windows(short: tuple[int, int], long: tuple[int, int]) -> dict[float, Share]:
    """Judged and missed in both windows of the fast pair; the slow pair's hold the same."""
    return {
        span: Share(*found)
        for pair in (FAST, SLOW)
        for span, found in ((pair.short_s, short), (pair.long_s, long))
    }


NONE = windows((0, 0), (0, 0))


@pytest.mark.parametrize(
    ("everyone", "unoptimised", "opened", "ends"),
    [
        # Within the budget.
        (windows((100, 0), (1000, 10)), NONE, 0, False),
        # Fast burning that unoptimised blocks made, and some that optimised requests made too.
        (windows((100, 50), (1000, 150)), windows((100, 50), (200, 145)), 0, True),
        (windows((100, 50), (1000, 400)), windows((100, 50), (200, 100)), 0, False),
        # So few requests that chance alone could have made it.
        (windows((19, 19), (19, 19)), windows((19, 19), (19, 19)), 0, False),
        # What has not ended may be late.
        (windows((10, 0), (100, 0)), windows((5, 0), (5, 0)), 7, False),
        (windows((15, 0), (100, 0)), windows((5, 0), (5, 0)), 8, True),
        (windows((1000, 0), (10_000, 0)), windows((500, 0), (500, 0)), 40, False),
    ],
)
def test_lateness_ends_it_before_it_is_a_page(
    everyone: dict[float, Share], unoptimised: dict[float, Share], opened: int, *, ends: bool
) -> None:
    found = suspension(
        load_score=0.5, overloaded_at=0.95, errors=0, answers=0, error_budget=0.05,
        routes=[Burning(everyone=everyone, unoptimised=unoptimised, open=opened)], target=0.99,
    )  # fmt: skip
    assert found is (SuspendReason.LATE if ends else None)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 200), st.floats(0.5, 0.999))
def test_what_would_be_a_page_of_unoptimised_requests_ends_it(
    judged: int, missed: int, opened: int, target: float
) -> None:
    """Whatever the target: no page is due while the block that alone makes it goes on."""
    share = Share(judged + missed, missed)
    found = dict.fromkeys(WINDOWS_S, share)
    for pair in (FAST, SLOW):
        if passed(found, pair, target, pair.factor) is not None:
            assert would_page(Burning(everyone=found, unoptimised=found, open=opened), target)
