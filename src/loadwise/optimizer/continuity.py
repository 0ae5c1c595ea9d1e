"""Experiments and rollout outlive the process: what is kept of them by name, and how a start goes on with it.

What is kept is what was known a moment before the process died. A request that was open then was cut off
unseen: its block holds it as lost. One that came later is in no figure, of whichever kind its block was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import Final

import msgspec

from loadwise.decision.improvement import Amount
from loadwise.logs import get_logger
from loadwise.optimizer.experiments import Experiments
from loadwise.optimizer.rollouts import Kept
from loadwise.optimizer.switchback import Tally
from loadwise.optimizer.tallies import Row, Tallies

log = get_logger(__name__)
# Everything kept here begins with this.
PREFIX: Final = "proof/"
HEAD: Final = f"{PREFIX}head"
ROLLOUT: Final = f"{PREFIX}rollout"
BLOCK: Final = f"{PREFIX}block/"
ROUTE: Final = f"{PREFIX}route/"
# Where what could not be understood is moved to, by part; the newest stays.
SET_ASIDE: Final = "set aside/"

News = Mapping[str, bytes | None]


class Head(msgspec.Struct, frozen=True):
    """What the blocks belong to: the settings' fingerprint, and the first stratum that is compared."""

    settings: str
    first_stratum: int


class Block(msgspec.Struct, frozen=True, array_like=True):
    """One block of time, with as many of its requests as had not ended."""

    tally: Tally
    open: int


class Rolled(msgspec.Struct, frozen=True):
    """Every rollout, under the settings' fingerprint."""

    settings: str
    courses: list[Kept]


class Continuity:
    """Says what changed of experiments and rollout since it was asked last, and takes up what was kept."""

    def __init__(self, experiments: Experiments) -> None:
        self._experiments = experiments
        # What is kept: small states whole, blocks by number.
        self._told: dict[str, bytes] = {}
        self._blocks: set[int] = set()
        self._open: Mapping[int, int] = {}
        # By part, why it was set aside at this start.
        self.set_aside: dict[str, str] = {}

    # --- keeping ---

    def news(self, opened: Mapping[int, int], now_s: float) -> News:
        """What changed since the last call, by name, None for what is gone; `opened` requests by block."""
        return {**self._small_news(now_s), **self._block_news(opened)}

    def _small_news(self, now_s: float) -> News:
        made = self._experiments
        states = {
            HEAD: _encoded(Head(made.settings, made.switchback.first_stratum)),
            ROLLOUT: _encoded(Rolled(made.settings, made.rollouts.kept(now_s))),
            **{ROUTE + name: found.packed() for name, found in made.conversations().items()},
        }
        before, self._told = self._told, states
        changed: dict[str, bytes | None] = {
            name: body for name, body in states.items() if before.get(name) != body
        }
        return {**changed, **dict.fromkeys(before.keys() - states.keys())}

    def _block_news(self, opened: Mapping[int, int]) -> News:
        blocks = self._experiments.switchback
        changed = blocks.take_changed() | opened.keys() | self._open.keys()
        present = blocks.blocks() | opened.keys()
        before, self._blocks, self._open = self._blocks, present, opened
        news: dict[str, bytes | None] = {f"{BLOCK}{number}": None for number in before - present}
        for number in changed & present:
            news[f"{BLOCK}{number}"] = _encoded(Block(blocks.kept(number), opened.get(number, 0)))
        return news

    # --- going on ---

    def take_up(self, kept: Mapping[str, bytes], now_s: float) -> News:
        """What an earlier process kept goes on under the same settings; what is to be kept otherwise now.

        What cannot be understood is set aside and told of; that part begins anew.
        """
        # All of it is told again, or that it is gone: what is kept may be in another file by now.
        self._told = {name: b"" for name in kept if not name.startswith(BLOCK)}
        self._blocks = {int(name.removeprefix(BLOCK)) for name in kept if _numbered(name)}
        news: dict[str, bytes | None] = {}
        parts = (
            ("rollout", self._rollouts, (ROLLOUT,)),
            ("comparison", self._comparison, (HEAD, BLOCK, ROUTE)),
        )
        for part, follow, names in parts:
            own = {name: body for name, body in kept.items() if name.startswith(names)}
            news.update(self._followed(part, follow, own, now_s))
        return news

    def _followed(
        self,
        part: str,
        follow: Callable[[Mapping[str, bytes], float], None],
        kept: Mapping[str, bytes],
        now_s: float,
    ) -> Iterator[tuple[str, bytes | None]]:
        try:
            follow(kept, now_s)
        except (ValueError, TypeError, OverflowError) as error:
            # `msgspec`'s own errors are of these kinds.
            self.set_aside[part] = str(error)
            log.warning("proof_set_aside", part=part, reason=str(error), entries=len(kept))
            yield f"{SET_ASIDE}{part}", _encoded(dict(kept))
            for name in kept:
                yield name, None

    def _rollouts(self, kept: Mapping[str, bytes], now_s: float) -> None:
        if ROLLOUT not in kept:
            return
        found = msgspec.msgpack.decode(kept[ROLLOUT], type=Rolled)
        if self._same("rollout", found.settings):
            self._experiments.rollouts.take_up(found.courses, now_s)

    def _comparison(self, kept: Mapping[str, bytes], _: float) -> None:
        if not kept:
            return
        if HEAD not in kept:
            raise ValueError("blocks without the settings that they belong to")
        head = msgspec.msgpack.decode(kept[HEAD], type=Head)
        if not self._same("comparison", head.settings):
            return
        tallies = {
            int(name.removeprefix(BLOCK)): _resumed(body)
            for name, body in kept.items()
            if name.startswith(BLOCK)
        }
        routes = {
            name.removeprefix(ROUTE): Tallies.of(msgspec.msgpack.decode(body, type=list[Row]))
            for name, body in kept.items()
            if name.startswith(ROUTE)
        }
        self._experiments.take_up(tallies, head.first_stratum, routes)

    def _same(self, part: str, settings: str) -> bool:
        same = settings == self._experiments.settings
        if not same:
            log.info("proof_begins_anew", part=part, reason="the settings changed since it was kept")
        return same


def _encoded(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


def _numbered(name: str) -> bool:
    return name.startswith(BLOCK) and name.removeprefix(BLOCK).lstrip("-").isdecimal()


def _resumed(body: bytes) -> Tally:
    """A block as it goes on: what was open when the process died is lost."""
    found = msgspec.msgpack.decode(body, type=Block)
    tally = found.tally
    _check(tally.within, most=tally.within.requests)
    for logs in (tally.first_token, tally.output_token, tally.whole):
        _check(logs)
    if min(found.open, tally.lost, tally.suspended, tally.answers, tally.errors) < 0:
        raise ValueError(f"no counts of a block: {found!r}")
    tally.lost += found.open
    return tally


def _check(amount: Amount, most: float | None = None) -> None:
    if not (isfinite(amount.requests) and amount.requests >= 0.0 and isfinite(amount.total)):
        raise ValueError(f"no sum of a block: {amount!r}")
    if most is not None and not 0.0 <= amount.total <= most:
        raise ValueError(f"no share of a block: {amount!r}")
