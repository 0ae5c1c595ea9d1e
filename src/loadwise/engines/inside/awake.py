"""Who hears the engine's statistics in this process: nobody, until the endpoint plugin wakes this up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Engine core, its scheduler's record, the iteration's record.
Listener = Callable[[int, Any, Any], None]
_listeners: list[Listener] = []


def wake(listener: Listener) -> None:
    """From now on the listener hears every record; it must neither wait nor raise."""
    _listeners[:] = [listener]


def sleep() -> None:
    """Nobody hears from now on."""
    _listeners.clear()


def tell(core: int, scheduler: Any, iteration: Any) -> None:
    """Passes a record on; costs nothing while nobody listens."""
    for listener in _listeners:
        listener(core, scheduler, iteration)
