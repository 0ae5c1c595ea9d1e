"""Errors, quality and scores of two kinds of requests, gathered by groups of conversations."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from math import isfinite
from typing import Final, NamedTuple

import msgspec

from loadwise.decision.comparison import GROUPS, Compared, compared
from loadwise.decision.improvement import NOTHING, Amount
from loadwise.decision.schedule import drawn


class Measure(StrEnum):
    """What is compared."""

    ERRORS = "errors"
    # Of the member that answered, 0..1.
    QUALITY = "quality"
    # What feedback said, 0..1.
    SCORES = "scores"


# Whose sum it is: what is compared, of which kind of requests, and the group.
Place = tuple[Measure, bool, int]
_ENCODER: Final = msgspec.msgpack.Encoder()


class Row(NamedTuple):
    """One group's sum, as it is kept."""

    measure: Measure
    optimised: bool
    group: int
    amount: Amount


class Tallies:
    """Sums per measure and group, with optimisation and without; as large after a year as after a day."""

    def __init__(self) -> None:
        self._amounts = {
            (measure, optimised): [NOTHING] * GROUPS for measure in Measure for optimised in (True, False)
        }
        # Each sum as it is kept, and those that changed since.
        self._packed: dict[Place, msgspec.Raw] = {}
        self._changed: set[Place] = set()

    def add(self, measure: Measure, unit: str, value: float, *, optimised: bool) -> None:
        """Counts a value (0..1) of a request of the conversation `unit`."""
        group = int(drawn("group", unit) * GROUPS)
        amounts = self._amounts[measure, optimised]
        amounts[group] = amounts[group].plus(Amount(1.0, value))
        self._changed.add((measure, optimised, group))

    def rows(self) -> list[Row]:
        """All sums that are not empty."""
        return [
            Row(measure, optimised, group, amount)
            for (measure, optimised), amounts in self._amounts.items()
            for group, amount in enumerate(amounts)
            if amount.requests
        ]

    def packed(self) -> bytes:
        """`rows()` as they are kept, in any order; only those that changed are encoded anew."""
        for place in self._changed:
            measure, optimised, group = place
            row = Row(measure, optimised, group, self._amounts[measure, optimised][group])
            self._packed[place] = msgspec.Raw(_ENCODER.encode(row))
        self._changed.clear()
        return _ENCODER.encode(list(self._packed.values()))

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Tallies:
        """The sums that were kept; `ValueError` for what no sum can be."""
        found = cls()
        for row in rows:
            requests, total = row.amount
            if not (0 <= row.group < GROUPS and isfinite(requests) and 0.0 <= total <= requests):
                raise ValueError(f"no sum of a group: {row!r}")
            found._amounts[row.measure, row.optimised][row.group] = row.amount
            found._changed.add((row.measure, row.optimised, row.group))
        return found

    @classmethod
    def joined(cls, theirs: Tallies, mine: Tallies, begun: Tallies) -> Tallies:
        """What two counted, of which each has in it what was there when they began."""
        found = cls()
        for kind, amounts in found._amounts.items():
            found._amounts[kind] = [
                theirs._amounts[kind][at].plus(mine._amounts[kind][at].minus(begun._amounts[kind][at]))
                for at in range(len(amounts))
            ]
        # As rows, so that all of it is to be kept.
        return cls.of(found.rows())

    def of_scores(self) -> Tallies:
        """The sums of scores alone."""
        return Tallies.of(row for row in self.rows() if row.measure is Measure.SCORES)

    def compared(self, measure: Measure) -> Compared:
        """Optimised against not."""
        return compared(self._amounts[measure, True], self._amounts[measure, False])

    def sums(self, measure: Measure, *, optimised: bool) -> tuple[int, float]:
        """Requests and their sum."""
        amounts = self._amounts[measure, optimised]
        return int(sum(each.requests for each in amounts)), sum(each.total for each in amounts)
