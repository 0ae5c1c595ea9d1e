"""What is believed of members outlives the process: kept by name now and then, taken up by a start."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from loadwise.decision.beliefs import Belief
from loadwise.decision.resumption import resumed, sound
from loadwise.logs import get_logger
from loadwise.optimizer.ensemble_manager import ModelEnsembleManager
from loadwise.optimizer.fleet import MemberParts
from loadwise.ports import Clock

log = get_logger(__name__)
# Everything kept here begins with this; a member's id follows.
PREFIX: Final = "belief/"
# A kill loses what was learned in so many seconds.
EVERY_S: Final = 10.0


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """What was believed of a member; `updated_s` is wall time, `member` tells it from another of its name."""

    member: str
    updated_s: float
    belief: Belief


class Resumption:
    """Says which beliefs are others than those that were kept last, and takes up what was kept."""

    def __init__(self, ensemble: ModelEnsembleManager, clock: Clock) -> None:
        self._ensemble = ensemble
        self._clock = clock
        self._kept: dict[str, Belief] = {}
        self._next_s = float("-inf")
        # By member, why what was kept of it was not taken up at this start.
        self.begun_anew: dict[str, str] = {}

    def news(self, *, now: bool = False) -> dict[str, bytes | None]:
        """What changed since the last call, by name, None for who left.

        Nothing for `EVERY_S` after it, unless it is asked for `now`.
        """
        now_s, beliefs = self._clock.monotonic_s(), self._ensemble.beliefs
        if not now and now_s < self._next_s:
            return {}
        self._next_s = now_s + EVERY_S
        before, self._kept = self._kept, dict(beliefs)
        gone: dict[str, bytes | None] = {PREFIX + name: None for name in before.keys() - beliefs.keys()}
        shift_s = self._clock.wall_s() - now_s
        return gone | {
            PREFIX + name: self._encoded(name, belief, shift_s)
            for name, belief in beliefs.items()
            if belief is not before.get(name) and belief.outcomes
        }

    def renew(self) -> None:
        """All of it is told again: it goes into another file."""
        self._kept, self._next_s = {}, float("-inf")

    def take_up(self, kept: Mapping[str, bytes]) -> None:
        """Members that are as they were are believed to be what they were found to be."""
        for name, found in self._found(kept):
            fresh = self._ensemble.beliefs.get(name)
            if fresh is not None and not fresh.outcomes and found.member == self._known_by(name):
                away_s = max(0.0, self._clock.wall_s() - found.updated_s)
                self._ensemble.resume(resumed(self._ensemble.policy, fresh, found.belief, away_s))

    def _found(self, kept: Mapping[str, bytes]) -> Iterator[tuple[str, Kept]]:
        for name, body in kept.items():
            member = name.removeprefix(PREFIX)
            try:
                yield member, _decoded(body)
            except ValueError as error:
                # `msgspec`'s own errors are of this kind.
                self.begun_anew[f"beliefs of {member}"] = str(error)
                log.warning("belief_not_taken_up", member=member, reason=str(error))

    def _encoded(self, name: str, belief: Belief, shift_s: float) -> bytes:
        return msgspec.msgpack.encode(Kept(self._known_by(name), belief.updated_s + shift_s, belief))

    def _known_by(self, name: str) -> str:
        return _fingerprint(self._ensemble.fleet.parts(name))


def _decoded(body: bytes) -> Kept:
    found = msgspec.msgpack.decode(body, type=Kept)
    if not sound(found.belief):
        raise ValueError("these are no figures of a belief")
    return found


def _fingerprint(parts: MemberParts) -> str:
    """What tells a member from another of its name: its engine, its size, where it runs."""
    member = parts.member
    facts = parts.engine_kind, member.relative_cost, member.replicas
    return hashlib.sha256(msgspec.msgpack.encode(facts)).hexdigest()[:16]
