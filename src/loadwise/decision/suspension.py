"""When a measurement must give way: an unoptimised block ends at once where it would do harm."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

# Answers below which an error share says nothing.
ANSWERS_NEEDED: Final = 20


class SuspendReason(StrEnum):
    """Why an unoptimised block was cut short."""

    OVERLOADED = "overloaded"
    REFUSING = "refusing"
    ERRORS = "error_budget_burning"


def suspension(
    *, load_score: float | None, overloaded_at: float, errors: int, answers: int, error_budget: float
) -> SuspendReason | None:
    """Why the block must end, if it must.

    `load_score` (0..1) is the most loaded pool's; `errors` of `answers` of the block were failures, and
    `error_budget` (0..1) is the share of failures that may be.
    """
    if load_score is not None and load_score >= overloaded_at:
        return SuspendReason.OVERLOADED
    if answers >= ANSWERS_NEEDED and errors > error_budget * answers:
        return SuspendReason.ERRORS
    return None
