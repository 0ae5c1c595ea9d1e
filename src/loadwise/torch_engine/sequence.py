"""A sequence on its way through the engine, and what was asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a sequence's tokens are chosen and when it ends. Ranges are checked before it is made."""

    max_tokens: int
    min_tokens: int = 0
    # 0 means greedy.
    temperature: float = 1.0
    top_p: float = 1.0
    # 0 means no limit.
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    # None: no logprobs; 0: the chosen token's; k: also the k most likely.
    logprobs: int | None = None

    @property
    def penalised(self) -> bool:
        """Whether earlier tokens change the odds of later ones."""
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1.0


class Finish(StrEnum):
    """Why a sequence ended; the first two are OpenAI's finish reasons."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """One prompt and its answer so far; `prompt` has at least one token."""

    sequence_id: int
    prompt: tuple[int, ...]
    sampling: Sampling
    arrived_s: float
    output: list[int] = field(default_factory=list)
    # Row of the key/value cache; None while waiting and after the end.
    place: int | None = None
    # Tokens whose keys and values are in the cache.
    computed: int = 0
    # When it had a place and its prompt began to be read.
    placed_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    finish: Finish | None = None

    @property
    def prefilled(self) -> bool:
        """Whether the whole prompt is in the cache."""
        return self.computed >= len(self.prompt)

    @property
    def queued_s(self) -> float | None:
        """Seconds for which it waited for a place; None while it does."""
        return None if self.placed_s is None else max(0.0, self.placed_s - self.arrived_s)

    @property
    def length(self) -> int:
        """Tokens of prompt and answer together."""
        return len(self.prompt) + len(self.output)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token with what was asked about it; logprobs are natural logarithms."""

    token_id: int
    logprob: float | None = None
    # (token id, logprob), most likely first.
    top: tuple[tuple[int, float], ...] | None = None
