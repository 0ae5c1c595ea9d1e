"""Experiments and rollout outlive the process: what is kept of them by name, and how a start goes on with it.

What is kept is what was known a moment before the process died. A request that was open then was cut off
unseen: its block holds it as lost. One that came later is in no figure, of whichever kind its block was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import isfinite
from typing import Final

import msgspec

from loadwise.decision.improvement import Amount
from loadwise.logs import get_logger
from loadwise.optimizer.experiments import Experiments
from loadwise.optimizer.late_scores import SCORE, Due
from loadwise.optimizer.rollouts import Kept
from loadwise.optimizer.switchback import Tally
from loadwise.optimizer.takeover import Comparison, courses, together
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
# Goes on with what was kept of one part, by name, at a time.
Follow = Callable[[Mapping[str, bytes], float], None]


class Head(msgspec.Struct, frozen=True):
    """What the blocks belong to: the settings' fingerprint, and the first stratum that is compared.

    `number` is the comparison's of conversations.
    """

    settings: str
    first_stratum: int
    number: int = 0


class Block(msgspec.Struct, frozen=True, array_like=True):
    """One block of time, with as many of its requests as had not ended."""

    tally: Tally
    open: int


class Rolled(msgspec.Struct, frozen=True):
    """Every rollout, under the settings' fingerprint."""

    settings: str
    courses: list[Kept]
    number: int = 0


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
        # What was taken up, for one who goes on with what another adds to it.
        self._begun: Comparison | None = None
        self._begun_courses: list[Kept] = []

    # --- keeping ---

    def news(self, opened: Mapping[int, int], now_s: float) -> News:
        """What changed since the last call, by name, None for what is gone; `opened` requests by block."""
        return {**self._small_news(now_s), **self._block_news(opened)}

    def _small_news(self, now_s: float) -> News:
        made = self._experiments
        states = {
            HEAD: _encoded(Head(made.settings, made.switchback.first_stratum, made.number)),
            ROLLOUT: _encoded(Rolled(made.settings, made.rollouts.kept(now_s), made.rollouts.number)),
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

    def scored(self, parts: Mapping[str, Due]) -> None:
        """Scores that were kept by these names count; the names are gone when what they changed is kept."""
        for name, part in parts.items():
            part.count(self._experiments)
            self._told[name] = b""

    # --- going on ---

    def take_up(self, kept: Mapping[str, bytes], now_s: float) -> News:
        """What an earlier process kept goes on under the same settings; what is to be kept otherwise now.

        What cannot be understood is set aside and told of; that part begins anew.
        """
        return self._all_of(kept, now_s, self._rollouts, self._comparison)

    def take_over(self, kept: Mapping[str, bytes], now_s: float) -> News:
        """What another process kept beside this one until it ended goes on with what this one saw."""
        return self._all_of(kept, now_s, self._joined_rollouts, self._joined_comparison)

    def _all_of(self, kept: Mapping[str, bytes], now_s: float, rollouts: Follow, comparison: Follow) -> News:
        # All of it is told again, or that it is gone: what is kept may be in another file by now.
        self._told = {name: b"" for name in kept if not name.startswith(BLOCK)}
        self._blocks = {int(name.removeprefix(BLOCK)) for name in kept if _numbered(name)}
        news: dict[str, bytes | None] = {}
        parts = (
            ("rollout", rollouts, (ROLLOUT,)),
            ("comparison", comparison, (HEAD, BLOCK, ROUTE)),
            ("scores", self._scores, (SCORE,)),
        )
        for part, follow, names in parts:
            own = {name: body for name, body in kept.items() if name.startswith(names)}
            news.update(self._followed(part, follow, own, now_s))
        # Also those that are as they were: another experiment's may lie under their numbers.
        self._experiments.switchback.all_changed()
        return news

    def _followed(
        self,
        part: str,
        follow: Follow,
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
        found = self._kept_rollouts(kept)
        if found is not None:
            self._experiments.rollouts.take_up(found.courses, found.number, now_s)
            self._begun_courses = found.courses

    def _joined_rollouts(self, kept: Mapping[str, bytes], now_s: float) -> None:
        found, rollouts = self._kept_rollouts(kept), self._experiments.rollouts
        if found is not None:
            both = courses(found.courses, rollouts.kept(now_s), self._begun_courses)
            rollouts.take_up(both, found.number, now_s)

    def _kept_rollouts(self, kept: Mapping[str, bytes]) -> Rolled | None:
        """What was kept under the same settings."""
        if ROLLOUT not in kept:
            return None
        found = msgspec.msgpack.decode(kept[ROLLOUT], type=Rolled)
        return found if self._same("rollout", found.settings) else None

    def _comparison(self, kept: Mapping[str, bytes], _: float) -> None:
        found = self._kept_comparison(kept)
        if found is not None:
            self._begun = found
            self._take(found)

    def _joined_comparison(self, kept: Mapping[str, bytes], _: float) -> None:
        found, made = self._kept_comparison(kept), self._experiments
        if found is None:
            return
        blocks = made.switchback
        mine = Comparison(
            made.settings, blocks.first_stratum, made.number, blocks.tallies(), made.conversations()
        )
        self._take(together(found, mine, self._begun))

    def _take(self, found: Comparison) -> None:
        # Copies: sums go on, and what was taken up is to stay known.
        blocks = {number: replace(tally) for number, tally in found.blocks.items()}
        routes = {name: Tallies.of(tallies.rows()) for name, tallies in found.routes.items()}
        self._experiments.take_up(blocks, found.first_stratum, routes, found.number)

    def _kept_comparison(self, kept: Mapping[str, bytes]) -> Comparison | None:
        """What was kept under the same settings."""
        if not kept:
            return None
        if HEAD not in kept:
            raise ValueError("blocks without the settings that they belong to")
        head = msgspec.msgpack.decode(kept[HEAD], type=Head)
        if not self._same("comparison", head.settings):
            return None
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
        return Comparison(head.settings, head.first_stratum, head.number, tallies, routes)

    def _scores(self, kept: Mapping[str, bytes], _: float) -> None:
        """Scores that no comparison had counted when the process died count now."""
        found = {name: msgspec.msgpack.decode(body, type=Due) for name, body in kept.items()}
        self.scored(found)

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
