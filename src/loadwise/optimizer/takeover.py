"""Two servers measured beside each other, and one of them has ended: what both saw becomes one comparison.

Each request was counted by one of them, so sums add up: what the other kept, and what this one counted on
top of the state that it began with. Where their rollouts differ, the one that is further back holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from loadwise.optimizer.rollouts import Kept
from loadwise.optimizer.switchback import Tally
from loadwise.optimizer.tallies import Row, Tallies

NO_SUMS = Tallies()


class Comparison(NamedTuple):
    """The sums of blocks and conversations, with the number of the comparison and what they belong to."""

    settings: str
    first_stratum: int
    number: int
    blocks: Mapping[int, Tally]
    routes: Mapping[str, Tallies]


def together(theirs: Comparison, mine: Comparison, begun: Comparison | None) -> Comparison:
    """Both comparisons as one; `begun` is what this process took up when it started.

    One that was begun anew by the other alone goes on without this one's.
    """
    both_anew = begun is None or begun.number not in (theirs.number, mine.number)
    if theirs.number != mine.number and not both_anew:
        return theirs
    shared = None if begun is None or begun.number != mine.number else begun
    before = {} if shared is None else shared.blocks
    routes = {} if shared is None else shared.routes
    return theirs._replace(
        first_stratum=max(theirs.first_stratum, mine.first_stratum),
        blocks={
            number: _blocks(theirs.blocks.get(number), mine.blocks.get(number), before.get(number))
            for number in theirs.blocks.keys() | mine.blocks.keys()
        },
        routes={
            name: Tallies.joined(
                theirs.routes.get(name, NO_SUMS), mine.routes.get(name, NO_SUMS), routes.get(name, NO_SUMS)
            )
            for name in theirs.routes.keys() | mine.routes.keys()
        },
    )


def _blocks(theirs: Tally | None, mine: Tally | None, begun: Tally | None) -> Tally:
    known = theirs or mine
    if known is None:
        raise ValueError("a block that nobody knows")
    return Tally.joined(theirs or Tally(known.control), mine or begun or Tally(known.control), begun)


def courses(theirs: list[Kept], mine: list[Kept], begun: list[Kept]) -> list[Kept]:
    """Each subject's rollout, as both saw it."""
    known = {found.subject: found for found in theirs}
    before = {found.subject: found for found in begun}
    ours = {found.subject: found for found in mine}
    return [
        _course(known[subject], ours[subject], before.get(subject))
        if subject in known and subject in ours
        else known.get(subject) or ours[subject]
        for subject in {**known, **ours}
    ]


def _course(theirs: Kept, mine: Kept, begun: Kept | None) -> Kept:
    """What did harm for one did it for both; else the smaller share holds, with what was seen at it."""
    if theirs.share != mine.share:
        return min((theirs, mine), key=lambda each: (each.harm is None, each.share))
    same = begun is not None and begun.share == mine.share
    joined = Tallies.joined(
        Tallies.of(theirs.rows), Tallies.of(mine.rows), Tallies.of(begun.rows) if same and begun else NO_SUMS
    )
    return Kept(
        subject=mine.subject,
        share=mine.share,
        seconds=max(theirs.seconds, mine.seconds),
        reason=theirs.reason,
        harm=theirs.harm or mine.harm,
        rows=joined.rows(),
        earlier=_earlier(theirs, mine, begun),
    )


def _earlier(theirs: Kept, mine: Kept, begun: Kept | None) -> dict[int, list[Row]]:
    """Scores of the steps that were left; where both moved on by themselves, the other's."""
    if begun is None or begun.share != mine.share:
        return theirs.earlier
    steps = theirs.earlier.keys() | mine.earlier.keys()
    kinds = (theirs.earlier, mine.earlier, begun.earlier)
    return {
        step: Tallies.joined(*(Tallies.of(each.get(step, [])) for each in kinds)).rows() for step in steps
    }
