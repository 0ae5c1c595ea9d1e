"""Blocks of time with and without optimisation, so that its effect is measured and not assumed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from loadwise.decision.improvement import Block, Improvement, improvement


@dataclass(slots=True)
class _Tally:
    optimised: bool
    started_s: float
    requests: int = 0
    within: int = 0


class Switchback:
    """The last block of every cycle is left unoptimised; each block's requests are counted.

    `fraction` (0..0.5) is the share of time without optimisation; 0 measures nothing. A block counts
    only after it ended, and requests count in the block that dispatched them.
    """

    def __init__(self, fraction: float, *, block_s: float = 10.0, size: int = 1000) -> None:
        self._block_s = block_s
        self._cycle = round(1.0 / fraction) if fraction > 0 else 0
        self._tallies: dict[int, _Tally] = {}
        self._ended: deque[Block] = deque(maxlen=size)
        # Requests may end long after their block; then they are no longer counted.
        self._open_blocks = 30

    def resize(self, size: int) -> None:
        """Keeps at most `size` blocks that ended, the newest."""
        self._ended = deque(self._ended, maxlen=size)

    def optimised(self, now_s: float) -> bool:
        """Whether requests dispatched now are optimised."""
        return self._cycle == 0 or int(now_s / self._block_s) % self._cycle != self._cycle - 1

    def note(self, dispatched_s: float, within_objectives: bool | None) -> None:
        """Counts an unforced request in the block that dispatched it; None says nothing."""
        if self._cycle == 0 or within_objectives is None:
            return
        number = int(dispatched_s / self._block_s)
        tally = self._tallies.get(number)
        if tally is None:
            tally = _Tally(self.optimised(dispatched_s), number * self._block_s)
            self._tallies[number] = tally
            self._close(number - self._open_blocks)
        tally.requests += 1
        tally.within += within_objectives

    def _close(self, before: int) -> None:
        for number in sorted(number for number in self._tallies if number < before):
            self._ended.append(_block(self._tallies.pop(number)))

    def measured(self, now_s: float) -> Improvement | None:
        """What optimisation gained, over all blocks that ended; None while there is not enough evidence."""
        current = int(now_s / self._block_s)
        recent = [_block(self._tallies[number]) for number in sorted(self._tallies) if number < current]
        return improvement([*self._ended, *recent])


def _block(tally: _Tally) -> Block:
    return Block(
        started_s=tally.started_s,
        optimised=tally.optimised,
        requests=tally.requests,
        within_objectives=tally.within,
    )
