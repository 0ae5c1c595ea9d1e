"""Which requests chance leaves alone: the same in every process, by values that a plan carries."""

from __future__ import annotations

from typing import Final, NamedTuple

from loadwise.decision.rollout import Mode
from loadwise.decision.schedule import drawn
from loadwise.optimizer.assignment import Held
from loadwise.ports import Enrolled


class Ramp(NamedTuple):
    """How far optimisation goes for a subject: mode, share (0..1), step, and the key that it is of."""

    mode: Mode
    share: float
    step: int = 0
    key: str | None = None


class Part(NamedTuple):
    """Why a request is left alone, if it is, and the comparisons that it takes part in."""

    held: Held | None = None
    enrolled: Enrolled | None = None


NO_PART: Final = Part()


class Shares(NamedTuple):
    """The draws for a subject on a route: of conversations (share, seed, number), and of a rollout."""

    route: str
    share: float
    seed: int
    number: int
    rollout: int
    # None where nothing is rolled out step by step.
    ramp: Ramp | None = None

    def part(self, unit: str) -> Part:
        """What becomes of a request, by its conversation or else itself."""
        ramp = self.ramp
        if ramp is not None and ramp.mode is Mode.ADVISORY:
            return Part(Held.ADVISORY)
        beyond = ramp is not None and not _within(f"rollout:{self.route}", unit, ramp.share)
        alone = not beyond and _within(f"conversations:{self.seed}:{self.route}", unit, self.share)
        held = Held.ROLLOUT if beyond else Held.CONTROL_CONVERSATION if alone else None
        return Part(held, self._enrolled(beyond=beyond, alone=alone))

    def _enrolled(self, *, beyond: bool, alone: bool) -> Enrolled | None:
        conversations = self.number if self.share > 0.0 and not beyond else None
        ramp = self.ramp
        # A conversation that is left alone shows nothing of the rollout's share.
        if ramp is None or ramp.mode is not Mode.RAMP or alone:
            return None if conversations is None else Enrolled(conversations, alone)
        return Enrolled(conversations, alone, self.rollout, ramp.step, ramp.key, rolled_out=not beyond)


def _within(salt: str, unit: str, share: float) -> bool:
    """Whether a unit is of the share that is drawn."""
    return share >= 1.0 or (share > 0.0 and drawn(salt, unit) < share)
