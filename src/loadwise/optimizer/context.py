"""A request's context, as callers of the library give it, in the core's terms."""

from __future__ import annotations

from collections.abc import Container, Mapping
from math import isfinite
from typing import Any

from loadwise.decision import preferences
from loadwise.decision.facts import RequestFacts
from loadwise.errors import ConfigurationError
from loadwise.optimizer.fleet import AUTO


def value_of(context: Any, name: str) -> Any:
    """A context's value by name, whether it is a mapping or an object; None where it has none."""
    if isinstance(context, Mapping):
        return context.get(name)
    return getattr(context, name, None)


def preference(value: Any, name: str) -> float | None:
    """A preference as a number in 0..1, None for none; `ConfigurationError` where it is no preference."""
    if value is None:
        return None
    number = preferences.preference(value)
    if number is None:
        raise ConfigurationError(preferences.refusal_of(f"user_preferences.{name}", value), field=name)
    return number


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
