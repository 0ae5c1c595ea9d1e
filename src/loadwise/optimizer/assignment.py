"""What experiments and rollout made of one request, kept until it ends."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from loadwise.decision.choices import Choice, ChoiceReason
from loadwise.decision.facts import RequestFacts
from loadwise.ports import Advice, Enrolled


class Held(StrEnum):
    """Why a request that could be optimised is not."""

    CONTROL_BLOCK = "control_block"
    CONTROL_CONVERSATION = "control_conversation"
    ADVISORY = "advisory"
    ROLLOUT = "rollout"

    @property
    def shown(self) -> str:
        """The reason that clients and counters see."""
        return "control" if self in CONTROLS else self.value


CONTROLS: Final = frozenset({Held.CONTROL_BLOCK, Held.CONTROL_CONVERSATION})


class Subject(NamedTuple):
    """What is rolled out by itself: a route, or a key (of those named in the settings) on a route."""

    route: str
    key: str | None = None


class Assignment(NamedTuple):
    """Where a request belongs; what it has no part in is None."""

    held: Held | None = None
    # The block it counts in, and whether it came after that block was suspended.
    block: int | None = None
    suspended: bool = False
    route: str = ""
    # What chance draws by, and the comparisons of errors, quality and scores that it is in.
    unit: str = ""
    enrolled: Enrolled | None = None
    # What would have been done, where optimisation only advises.
    advice: Advice | None = None


UNASSIGNED: Final = Assignment()


def unit_of(request: RequestFacts) -> str:
    """What chance draws a request by: its conversation, or else itself."""
    return request.conversation_id or request.request_id


def reason_of(choice: Choice, held: Held | None) -> str:
    """The choice's own reason; where the request was left alone, why that is."""
    return choice.reason.value if held is None or choice.reason is not ChoiceReason.CONTROL else held.shown
