"""Held-out texts as tokens, and the rows that a step reads of them. Letters: B texts, T tokens of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadwise.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Texts:
    """One text after the other, and whose they are, as it is told beside what was found on them."""

    tokens: Sequence[int]
    source: str

    def rows(self, most: int, length: int, vocabulary: int) -> list[list[int]]:
        """B rows of T = `length` tokens, from all over the texts: at least two, at most `most`.

        `ConfigurationError` when there are fewer tokens, or other ones than the model knows.
        """
        count = len(self.tokens) // length
        if count < 2:
            raise ConfigurationError(
                f"The texts to hold builds against have {len(self.tokens)} tokens, but {2 * length} are "
                "needed. Give more prompts.",
                field="build_prompts",
            )
        if max(self.tokens) >= vocabulary:
            raise ConfigurationError(
                f"The tokenizer makes tokens beyond the model's vocabulary of {vocabulary}.", field="path"
            )
        taken = min(most, count)
        starts = [length * (place * (count - 1) // (taken - 1)) for place in range(taken)]
        return [list(self.tokens[start : start + length]) for start in starts]
