"""Who goes without optimisation, and when: blocks of time in random order, conversations by chance.

Both follow from a seed, so that several processes of one server agree and a restart changes nothing.
Blocks are randomised within strata of neighbours: a stratum holds as many unoptimised blocks as the
share says, at places that chance chose, and is compared only with itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import blake2b
from typing import Final

# The longest stratum; the least share is one block of it.
LONGEST_STRATUM: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Blocks of `block_s` seconds of which `share` (0, or 0.01 to 0.5) go without optimisation.

    The first `burn_in_s` seconds of each are not compared: queues of the block before drain there.
    """

    block_s: float
    burn_in_s: float
    share: float
    seed: int = 0
    # Unoptimised blocks in a stratum, and its length.
    stratum: Fraction = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stratum", Fraction(self.share).limit_denominator(LONGEST_STRATUM))

    def block_of(self, at_s: float) -> int:
        """The number of the block that holds `at_s`."""
        return int(at_s // self.block_s)

    def stratum_of(self, block: int) -> int:
        """The number of the block's stratum."""
        return block // self.stratum.denominator

    def settled(self, at_s: float) -> bool:
        """Whether the block's burn-in is over."""
        return at_s % self.block_s >= self.burn_in_s

    def control(self, block: int) -> bool:
        """Whether the block goes without optimisation."""
        wanted, length = self.stratum.numerator, self.stratum.denominator
        if not wanted:
            return False
        stratum = block // length
        order = sorted(range(length), key=lambda place: _digest(f"{self.seed}:{stratum}:{place}"))
        return block % length in order[:wanted]


def drawn(salt: str, unit: str) -> float:
    """A number in 0..1 that is the same for the same unit (a conversation, a request) and salt."""
    return int.from_bytes(_digest(f"{salt}:{unit}")) / 2.0**64


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
