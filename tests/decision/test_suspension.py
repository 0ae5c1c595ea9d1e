"""When an unoptimised block must end."""

from __future__ import annotations

import pytest

from loadwise.decision.suspension import SuspendReason, suspension


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
