"""A request's context, as callers of the library give it, in the core's terms."""

from __future__ import annotations

from collections.abc import Container, Mapping
from math import isfinite
from typing import Any, Final

from loadwise.decision.facts import RequestFacts
from loadwise.errors import ConfigurationError
from loadwise.optimizer.fleet import AUTO

PREFERENCES: Final = {"low": 0.0, "medium": 0.5, "high": 1.0}


def value_of(context: Any, name: str) -> Any:
    """A context's value by name, whether it is a mapping or an object; None where it has none."""
    if isinstance(context, Mapping):
        return context.get(name)
    return getattr(context, name, None)


def preference(value: Any, name: str) -> float | None:
    """Low, medium, high or a number in 0..1, as a number; `ConfigurationError` for anything else."""
    if value is None:
        return None
    if isinstance(value, str) and value.lower() in PREFERENCES:
        return PREFERENCES[value.lower()]
    if isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0:
        return float(value)
    raise ConfigurationError(
        f"user_preferences.{name} must be low, medium, high or a number in 0..1, not {value!r:.80}.",
        field=name,
    )


def load_hint(context: Any) -> float | None:
    """The load that the caller says there is (`load_info["current_load"]`, 0..1), or None."""
    given = value_of(value_of(context, "load_info") or {}, "current_load")
    usable = isinstance(given, int | float) and not isinstance(given, bool) and isfinite(given)
    return min(1.0, max(0.0, float(given))) if usable else None


def facts_of(context: Any, members: Container[str]) -> RequestFacts:
    """What selection needs to know; a `model_name` that is no member's leaves the choice open."""
    named = value_of(context, "model_name")
    wishes = value_of(context, "user_preferences") or {}
    conversation = value_of(context, "session_id") or value_of(context, "conversation_id")
    return RequestFacts(
        request_id=str(value_of(context, "request_id") or ""),
        model=str(named) if named in members else AUTO,
        conversation_id=None if conversation is None else str(conversation),
        continues=conversation is not None,
        quality_preference=preference(value_of(wishes, "quality"), "quality"),
        speed_preference=preference(value_of(wishes, "speed"), "speed"),
    )
