"""How much quality and speed count for a client, in words or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

WORDS: Final[Mapping[str, float]] = MappingProxyType({"low": 0.0, "medium": 0.5, "high": 1.0})


def preference(value: object) -> float | None:
    """A word (low 0, medium 0.5, high 1) or a number in 0..1, also as text; None for all else."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in WORDS:
            return WORDS[word]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    # NaN fails both comparisons.
    return number if 0.0 <= number <= 1.0 else None


def refusal_of(name: str, value: object) -> str:
    """What is said of a value that is no preference."""
    return f"{name} is low, medium, high or a number in 0..1, not {value!r:.80}."
