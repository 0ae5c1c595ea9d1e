"""A client's preferences, refused in OpenAI's shape."""

from __future__ import annotations

from loadwise.decision import preferences
from loadwise.errors import RequestError


def preference(value: object, name: str) -> float:
    """A preference as a number in 0..1; `RequestError` 400 that names it where it is none."""
    number = preferences.preference(value)
    if number is None:
        raise RequestError(preferences.refusal_of(name, value), param=name)
    return number
