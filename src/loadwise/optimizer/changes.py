"""What loadwise itself changed, newest last, each with the reason and the command that takes it back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import msgspec

# The newest are kept.
KEPT: Final = 500
_POST = 'curl -X POST "$LOADWISE_URL/v1/optimization/{path}" -H "x-loadwise-admin-key: $LOADWISE_ADMIN_KEY"'
STOP: Final = _POST.format(path="stop")
START: Final = _POST.format(path="start")


class ChangeKind(StrEnum):
    """What kind of thing changed."""

    STRATEGY = "strategy"
    CONFIGURATION = "configuration"
    MEMBER = "member"
    BUILD = "build"
    SWITCH = "switch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change: what it was in one line, why, and the shell command that undoes it.

    `undo` is None where nothing needs to be done: what was changed comes back by itself.
    """

    at_s: float
    kind: ChangeKind
    what: str
    reason: str
    undo: str | None = None


def configure(settings: dict[str, Any]) -> str:
    """The shell command that gives these settings these values."""
    body = msgspec.json.encode(settings).decode().replace("'", "'\\''")
    return f"{_POST.format(path='configure')} -H 'content-type: application/json' -d '{body}'"


class Changes:
    """The newest changes."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept: deque[Change] = deque(maxlen=kept)

    def add(self, change: Change) -> None:
        """Keeps a change, at the cost of the oldest when there are many."""
        self._kept.append(change)

    def since(self, at_s: float) -> list[Change]:
        """Those of `at_s` and later, oldest first."""
        return [change for change in self._kept if change.at_s >= at_s]

    def __iter__(self) -> Iterator[Change]:
        return iter(self._kept)
