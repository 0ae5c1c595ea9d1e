"""How much quality and speed count for a client, in words or numbers."""

from __future__ import annotations

from collections.abc import Mapping

from loadwise.errors import RequestError

WORDS: Mapping[str, float] = {"low": 0.0, "medium": 0.5, "high": 1.0}


def preference(value: object, name: str) -> float:
    """A preference as a number in 0..1; the words are low (0), medium (0.5) and high (1).

    Raises `RequestError` 400 that names the preference.
    """
    number = _number(value)
    # NaN fails both comparisons.
    if not 0.0 <= number <= 1.0:
        raise RequestError(f"{name} is low, medium, high or a number in 0..1, not {value!r:.80}.", param=name)
    return number


def _number(value: object) -> float:
    if isinstance(value, str):
        word = value.strip().lower()
        if word in WORDS:
            return WORDS[word]
    try:
        return float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else -1.0
    except ValueError:
        return -1.0
