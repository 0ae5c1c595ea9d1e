"""What experiments and rollout made of one request, kept until it ends."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from loadwise.ports import Advice


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
    # What chance draws by, a conversation or else a request, where errors and quality are compared.
    unit: str | None = None
    control_unit: bool = False
    # The subject whose share is growing, and whether this unit is within the share.
    subject: Subject | None = None
    rolled_out: bool = True
    route: str = ""
    # Whose request it is: tenants may use the same request id.
    tenant: str = ""
    # What would have been done, where optimisation only advises.
    advice: Advice | None = None


UNASSIGNED: Final = Assignment()
