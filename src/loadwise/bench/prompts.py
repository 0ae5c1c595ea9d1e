"""Prompts of a wanted number of tokens: Python-like text, or plain words where no tokenizer is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Protocol

from tokenizers import Tokenizer

from loadwise.errors import ConfigurationError

_NAMES = (
    *("value", "index", "result", "path", "name", "data", "key", "items", "count", "line", "node", "parent"),
    *("buffer", "token", "offset", "limit", "start", "end", "source", "target", "config", "state", "queue"),
    *("text", "width", "height", "stream", "reader", "writer", "encoding", "error", "message"),
)
_CALLS = ("len", "str", "int", "list", "sorted", "min", "max", "sum", "repr", "hash", "tuple", "abs")


class Prompts(Protocol):
    """Makes the prompt of the n-th request; the same seed gives the same prompts."""

    def make(self, number: int, tokens: int) -> str | list[int]:
        """A prompt of `tokens` tokens, different for every number from its beginning on."""
        ...


def code_lines(chance: Random) -> Iterator[str]:
    """Endless Python-like lines."""
    while True:
        first, second, third = chance.sample(_NAMES, 3)
        yield f"def {first}_{second}({second}, {third}={chance.randrange(100)}):\n"
        for _ in range(chance.randrange(2, 6)):
            yield f"    {_statement(chance)}\n"
        yield f"    return {first}\n\n\n"


def _statement(chance: Random) -> str:
    left, right, other = chance.sample(_NAMES, 3)
    call = chance.choice(_CALLS)
    return chance.choice(
        (
            f"{left} = {call}({right}, {other})",
            f"{left} = {right}.{other}[{chance.randrange(64)}]",
            f"if {left} is None: raise ValueError('{right} {other}')",
            f"for {left} in {right}: {other}.append({call}({left}))",
            f"{left}, {right} = {right}, {call}({other}) + {chance.randrange(1000)}",
        )
    )


class TextPrompts:
    """Python-like text of exactly the wanted length, measured with the model's own tokenizer."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._seed = seed

    @classmethod
    def from_path(cls, path: Path, seed: int) -> TextPrompts:
        """With `tokenizer.json`, or the one in a model's folder; `ConfigurationError` when there is none."""
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            return cls(Tokenizer.from_file(str(file)), seed)
        # The library raises plain Exception for a file that is missing or is no tokenizer.
        except Exception as error:  # noqa: BLE001
            raise ConfigurationError(
                f"Cannot read the tokenizer {file}: {error}", field="--tokenizer"
            ) from None

    def make(self, number: int, tokens: int) -> str | list[int]:
        """Text that encodes to `tokens` tokens, or token ids where no cut of the text does."""
        chance = Random(f"{self._seed}:{number}")
        lines = code_lines(chance)
        text = f"# {chance.getrandbits(32):08x}\n"
        encoded = self._tokenizer.encode(text)
        while len(encoded.ids) < tokens + 2:
            text += "".join(next(lines) for _ in range(max(4, tokens // 8)))
            encoded = self._tokenizer.encode(text)
        # Cutting between two tokens may merge the last ones differently: try the neighbouring cuts too.
        for last in (tokens - 1, tokens, tokens - 2, tokens + 1):
            cut = text[: encoded.offsets[last][1]] if last >= 0 else ""
            if len(self._tokenizer.encode(cut).ids) == tokens:
                return cut
        return list(encoded.ids[:tokens])


class WordPrompts:
    """Plain words, `tokens_per_word` tokens each as the server itself counted them."""

    def __init__(self, tokens_per_word: float, seed: int) -> None:
        if tokens_per_word <= 0:
            raise ConfigurationError(f"tokens_per_word must be above 0, not {tokens_per_word:g}")
        self._tokens_per_word = tokens_per_word
        self._seed = seed

    def make(self, number: int, tokens: int) -> str | list[int]:
        """About `tokens` tokens of words."""
        chance = Random(f"{self._seed}:{number}")
        return " ".join(chance.choice(_NAMES) for _ in range(max(1, round(tokens / self._tokens_per_word))))
