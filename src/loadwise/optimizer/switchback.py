"""Blocks of time with and without optimisation: which one it is now, and what each one's requests did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log

from loadwise.decision.facts import Outcome
from loadwise.decision.improvement import NOTHING, Amount, Block, Gains, gains
from loadwise.decision.schedule import Schedule
from loadwise.decision.suspension import SuspendReason
from loadwise.ports import JsonObject
from loadwise.telemetry.prometheus import time_per_output_token_s

# Below what a clock tells apart; a logarithm needs more than 0.
SHORTEST_S = 1e-6


@dataclass(slots=True)
class Tally:
    """A block while its requests end; one that was dispatched in time counts whenever it ends."""

    control: bool
    within: Amount = NOTHING
    first_token: Amount = NOTHING
    output_token: Amount = NOTHING
    whole: Amount = NOTHING
    suspended: int = 0
    answers: int = 0
    errors: int = 0
    reason: SuspendReason | None = field(default=None)
    # Requests that were open when the process died.
    lost: int = 0

    @classmethod
    def joined(cls, theirs: Tally, mine: Tally, begun: Tally | None) -> Tally:
        """What two counted in one block, of which each has in it what was there when they began."""
        shared = begun or cls(mine.control)
        sums = {
            name: getattr(theirs, name).plus(getattr(mine, name).minus(getattr(shared, name)))
            for name in ("within", "first_token", "output_token", "whole")
        }
        counts = {
            name: getattr(theirs, name) + getattr(mine, name) - getattr(shared, name)
            for name in ("suspended", "answers", "errors", "lost")
        }
        return cls(theirs.control, reason=theirs.reason or mine.reason, **sums, **counts)

    def block(self, stratum: int) -> Block:
        """The block as it is compared."""
        return Block(
            stratum=stratum,
            control=self.control,
            within=self.within,
            first_token=self.first_token,
            output_token=self.output_token,
            whole=self.whole,
            suspended=self.suspended,
            lost=self.lost,
        )


class Switchback:
    """Counts requests in the block that dispatched them; times are seconds of the wall clock.

    Processes that share a schedule treat a block alike. The newest `size` blocks are kept.
    """

    def __init__(self, schedule: Schedule, *, size: int, now_s: float) -> None:
        self.schedule = schedule
        self._size = size
        self._tallies: dict[int, Tally] = {}
        # Blocks that changed since they were last asked for.
        self._changed: set[int] = set()
        self.first_stratum = 0
        # Nothing is counted before this moment.
        self._counts_from_s = float("-inf")
        self._block, self._control = -1, False
        self._measured: tuple[int, Gains] | None = None
        self.restart(now_s)

    def restart(self, now_s: float) -> None:
        """What is compared is another thing from now on: earlier blocks say nothing of it."""
        self._tallies.clear()
        self._measured, self._block = None, -1
        self.first_stratum = self.schedule.stratum_of(self.schedule.block_of(now_s)) + 1

    def take_up(self, tallies: Mapping[int, Tally], first_stratum: int, now_s: float) -> None:
        """The comparison of an earlier process goes on, in the block that it is.

        After a start engines are cold and queues empty, so a burn-in passes before anything counts.
        """
        self._tallies = dict(tallies)
        self.first_stratum = first_stratum
        self._measured, self._block = None, -1
        self._counts_from_s = now_s + self.schedule.burn_in_s
        self._trim()

    # --- what outlives the process ---

    def blocks(self) -> set[int]:
        """The blocks that are kept."""
        return set(self._tallies)

    def take_changed(self) -> set[int]:
        """The blocks that changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def all_changed(self) -> None:
        """Every block is among the changed ones."""
        self._changed.update(self._tallies)

    def tallies(self) -> dict[int, Tally]:
        """All blocks as they are now."""
        return dict(self._tallies)

    def kept(self, block: int) -> Tally:
        """What is known of a block so far."""
        return self._tallies.get(block) or Tally(self.schedule.control(block))

    # --- the blocks ---

    def resize(self, size: int) -> None:
        """Keeps at most `size` blocks, the newest."""
        self._size = size
        self._trim()

    def control(self, now_s: float) -> bool:
        """Whether this is an unoptimised block, suspended or not; none is before the first whole stratum."""
        block = self.schedule.block_of(now_s)
        if block != self._block:
            begun = self.schedule.stratum_of(block) >= self.first_stratum
            self._block, self._control = block, begun and self.schedule.control(block)
        return self._control

    def suspended(self, now_s: float) -> bool:
        """Whether the block of `now_s` was cut short."""
        tally = self._tallies.get(self.schedule.block_of(now_s))
        return tally is not None and tally.reason is not None

    def suspend(self, now_s: float, reason: SuspendReason) -> None:
        """The unoptimised block of `now_s` goes on with optimisation."""
        tally = self._tally(self.schedule.block_of(now_s))
        if tally.control and tally.reason is None:
            tally.reason = reason

    def counted(self, now_s: float) -> int | None:
        """The block that a request dispatched now counts in; None during a burn-in, also after a start."""
        counts = now_s >= self._counts_from_s and self.schedule.settled(now_s)
        return self.schedule.block_of(now_s) if counts else None

    def cut(self, block: int) -> None:
        """A request came after its unoptimised block was suspended."""
        self._tally(block).suspended += 1

    def note(self, block: int, outcome: Outcome, within: bool | None, *, failed: bool) -> None:
        """Counts how a request ended in the block that dispatched it."""
        tally = self._tally(block)
        tally.answers += 1
        tally.errors += failed
        if within is not None:
            tally.within = tally.within.plus(Amount(1.0, float(within)))
        if not failed:
            tally.first_token = _with(tally.first_token, outcome.time_to_first_token_s)
            tally.output_token = _with(tally.output_token, time_per_output_token_s(outcome))
            tally.whole = _with(tally.whole, outcome.total_s)

    def refused(self, block: int) -> None:
        """A request that found no room was not within its objectives."""
        tally = self._tally(block)
        tally.answers += 1
        tally.errors += 1
        tally.within = tally.within.plus(Amount(1.0, 0.0))

    def errors(self, now_s: float) -> tuple[int, int]:
        """Failures and answers of the block so far."""
        tally = self._tallies.get(self.schedule.block_of(now_s))
        return (0, 0) if tally is None else (tally.errors, tally.answers)

    def gains(self, now_s: float) -> Gains:
        """What the strata that ended say; worked out once per block."""
        block = self.schedule.block_of(now_s)
        if self._measured is None or self._measured[0] != block:
            self._measured = block, gains(self._ended(self.schedule.stratum_of(block)))
        return self._measured[1]

    def now(self, now_s: float) -> JsonObject:
        """The block that it is."""
        block = self.schedule.block_of(now_s)
        tally = self._tallies.get(block)
        return {
            "optimised": not self.control(now_s) or self.suspended(now_s),
            "suspended": None if tally is None or tally.reason is None else tally.reason.value,
            "seconds_left": (block + 1) * self.schedule.block_s - now_s,
        }

    def _ended(self, stratum: int) -> list[Block]:
        strata: Callable[[int], int] = self.schedule.stratum_of
        return [
            self._tallies[number].block(strata(number))
            for number in sorted(self._tallies)
            if self.first_stratum <= strata(number) < stratum
        ]

    def _tally(self, block: int) -> Tally:
        tally = self._tallies.get(block)
        if tally is None:
            tally = self._tallies[block] = Tally(self.schedule.control(block))
            self._trim()
        self._changed.add(block)
        return tally

    def _trim(self) -> None:
        for number in sorted(self._tallies)[: max(0, len(self._tallies) - self._size)]:
            del self._tallies[number]


def _with(amount: Amount, seconds: float | None) -> Amount:
    return amount if seconds is None else amount.plus(Amount(1.0, log(max(SHORTEST_S, seconds))))
