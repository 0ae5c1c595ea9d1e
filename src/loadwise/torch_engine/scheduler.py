"""Who runs in the next step. Plain Python: no torch, no clock, no threads.

1. First come, first served: a sequence waits until a place is free, then keeps it to its end. Places are
   preallocated, so nothing that runs is ever pushed out.
2. Every step decodes one token of each sequence whose prompt is in the cache.
3. The same step reads prompts, oldest first, at most `prefill_tokens` of them: a long prompt is read in
   chunks, and those who are decoding wait no longer than one chunk.
4. Occupied places stay dense (0..n-1), so that a step computes no empty rows: when one ends and nobody waits
   for its place, the sequence in the highest place moves into it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from loadwise.errors import ConfigurationError, RequestError
from loadwise.torch_engine.sequence import Finish, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the scheduler may hand out; all at least 1, `waiting` at least 0."""

    places: int
    waiting: int
    # Prompt and answer together.
    context_tokens: int
    # Prompt tokens read in one step.
    prefill_tokens: int = 512
    # Token ids are below it; None: not checked.
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        for name in ("places", "context_tokens", "prefill_tokens"):
            if getattr(self, name) < 1:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)}; it must be at least 1.", field=name
                )
        if self.waiting < 0:
            raise ConfigurationError(f"waiting is {self.waiting}; it must be at least 0.", field="waiting")


@dataclass(frozen=True, slots=True)
class Chunk:
    """`length` prompt tokens of a sequence from `start` on, to be read in this step."""

    sequence: Sequence
    start: int
    length: int

    @property
    def last(self) -> bool:
        """Whether the prompt is complete after it, so that the first token can be sampled."""
        return self.start + self.length == len(self.sequence.prompt)


@dataclass(frozen=True, slots=True)
class Move:
    """The first `length` cached tokens of place `source` go to place `target`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: moves first, then chunks, then one token for each of `decodes` (by place)."""

    moves: Rows[Move] = ()
    chunks: Rows[Chunk] = ()
    decodes: Rows[Sequence] = ()

    def __bool__(self) -> bool:
        return bool(self.chunks or self.decodes)


class Scheduler:
    """Holds who waits and who runs; every sequence added leaves through `finish` exactly once."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        # In order of admission.
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence; `RequestError` 400 when it cannot fit, 429 when the queue is full."""
        self._check_prompt(sequence.prompt)
        free = self.limits.places - len(self.running)
        if len(self.waiting) >= self.limits.waiting + free:
            raise RequestError(
                f"The engine is full: {len(self.running)} run and {len(self.waiting)} wait "
                f"(queue_limit {self.limits.waiting}). Try again shortly.",
                status=429,
                kind="rate_limit_error",
                code="queue_full",
                retry_after_s=1.0,
            )
        self.waiting.append(sequence)

    def _check_prompt(self, tokens: Rows[int]) -> None:
        prompt, context, vocabulary = len(tokens), self.limits.context_tokens, self.limits.vocabulary
        if not 1 <= prompt < context:
            raise RequestError(
                f"The prompt has {prompt} tokens; this model takes 1 to {context - 1} "
                f"(its context of {context} holds prompt and answer). Shorten the prompt.",
                param="prompt",
                code="context_length_exceeded" if prompt else None,
            )
        # A device fault by an impossible id would end everyone who runs.
        if vocabulary is not None and not all(0 <= token < vocabulary for token in tokens):
            raise RequestError(f"Token ids must lie in 0..{vocabulary - 1}.", param="prompt")

    def schedule(self) -> Plan:
        """The next step's work; empty when there is none."""
        self._admit()
        moves = self._compact()
        chunks = self._chunks()
        decodes = sorted((s for s in self.running if s.prefilled), key=lambda s: s.place or 0)
        return Plan(moves, chunks, decodes)

    def finish(self, sequence: Sequence, finish: Finish) -> None:
        """Its place is free for the next step; a second call changes nothing."""
        if sequence.finish is not None:
            return
        sequence.finish = finish
        if sequence.place is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        sequence.place = None

    def _admit(self) -> None:
        taken = {sequence.place for sequence in self.running}
        free = (place for place in range(self.limits.places) if place not in taken)
        while self.waiting and len(self.running) < self.limits.places:
            sequence = self.waiting.popleft()
            sequence.place = next(free)
            self.running.append(sequence)

    def _compact(self) -> list[Move]:
        taken = {sequence.place for sequence in self.running}
        holes = [place for place in range(len(self.running)) if place not in taken]
        beyond = [sequence for sequence in self.running if (sequence.place or 0) >= len(self.running)]
        moves = []
        for sequence, hole in zip(beyond, holes, strict=True):
            moves.append(Move(sequence.place or 0, hole, sequence.computed))
            sequence.place = hole
        return moves

    def _chunks(self) -> list[Chunk]:
        budget = self.limits.prefill_tokens
        chunks = []
        for sequence in self.running:
            length = min(len(sequence.prompt) - sequence.computed, budget)
            if length > 0:
                chunks.append(Chunk(sequence, sequence.computed, length))
                budget -= length
        return chunks
