"""Chooses tokens: a batch at once, each row by its own rules and its own chance.

A row draws one uniform number per token from its own generator and walks its own sorted distribution, so
that the same seed gives the same tokens whoever shares the batch. B rows, V vocabulary, K candidates kept.
Order: penalties, forbidden stops, temperature, top_k, top_p and min_p. Logprobs are the model's own, before
any of these.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from loadwise.torch_engine.sequence import Sampled, Sampling, Sequence

# Logits divided by less could leave the range of float32.
_COLDEST = 1e-4


@dataclass(slots=True)
class _Memory:
    """What a row remembers between tokens."""

    generator: torch.Generator
    # [V] each, only with penalties: how often a token was answered, and whether it was seen at all.
    counts: torch.Tensor | None = None
    seen: torch.Tensor | None = None


class Sampler:
    """Holds each sequence's generator and token counts until `forget`."""

    def __init__(self, eos_token_ids: Rows[int]) -> None:
        self.eos_token_ids = tuple(eos_token_ids)
        self._memories: dict[int, _Memory] = {}

    def forget(self, sequence: Sequence) -> None:
        """Its generator and counts are gone."""
        self._memories.pop(sequence.sequence_id, None)

    def sample(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> list[Sampled]:
        """One token per row of `logits` [B, V]; row i belongs to `sequences[i]`."""
        raw = logits.float()
        if all(_plain(sequence) for sequence in sequences):
            return [Sampled(token) for token in raw.argmax(-1).tolist()]
        memories = [self._memory(sequence, raw) for sequence in sequences]
        scores = self._shape(raw, sequences, memories)
        tokens = torch.where(
            _column(raw, [s.sampling.temperature for s in sequences]) > 0,
            self._draw(scores, sequences, memories),
            scores.argmax(-1, keepdim=True),
        )
        chosen = tokens.squeeze(-1).tolist()
        for memory, token in zip(memories, chosen, strict=True):
            if memory.counts is not None and memory.seen is not None:
                memory.counts[token] += 1
                memory.seen[token] = True
        return _with_logprobs(raw, chosen, [sequence.sampling for sequence in sequences])

    def _memory(self, sequence: Sequence, logits: torch.Tensor) -> _Memory:
        memory = self._memories.get(sequence.sequence_id)
        if memory is None:
            memory = _remember(sequence, logits)
            self._memories[sequence.sequence_id] = memory
        return memory

    def _shape(self, raw: torch.Tensor, sequences: Rows[Sequence], memories: Rows[_Memory]) -> torch.Tensor:
        """[B, V]: logits after penalties, with stops forbidden where more tokens are due."""
        scores = raw.clone()
        for row, sequence, memory in zip(scores, sequences, memories, strict=True):
            if memory.counts is not None and memory.seen is not None:
                _penalise(row, sequence.sampling, memory.counts, memory.seen)
            if len(sequence.output) < sequence.sampling.min_tokens:
                stops = {*self.eos_token_ids, *sequence.sampling.stop_token_ids}
                row[[token for token in stops if 0 <= token < row.shape[-1]]] = -torch.inf
        return scores

    @staticmethod
    def _draw(scores: torch.Tensor, sequences: Rows[Sequence], memories: Rows[_Memory]) -> torch.Tensor:
        """[B, 1]: one token per row by chance; rows with temperature 0 draw too and are not used."""
        kept, candidates = _candidates(scores, [sequence.sampling for sequence in sequences])  # [B, K]
        drawn = [
            torch.rand(1, generator=memory.generator).item() if sequence.sampling.temperature > 0 else 0.0
            for sequence, memory in zip(sequences, memories, strict=True)
        ]
        cumulative = kept.cumsum(-1)  # [B, K]
        threshold = _column(scores, drawn) * cumulative[:, -1:]
        index = (cumulative <= threshold).sum(-1, keepdim=True)
        # Rounding may put the threshold on the sum itself: never choose a candidate without chance.
        last = (kept > 0).sum(-1, keepdim=True) - 1
        return candidates.gather(-1, torch.minimum(index, last))


def _plain(sequence: Sequence) -> bool:
    """Whether its token is simply the most likely one."""
    sampling = sequence.sampling
    waits = len(sequence.output) < sampling.min_tokens
    return sampling.temperature == 0 and not sampling.penalised and sampling.logprobs is None and not waits


def _column(like: torch.Tensor, values: Rows[float]) -> torch.Tensor:
    """[B, 1] of float32 beside `like`."""
    return torch.tensor(values, dtype=torch.float32, device=like.device).unsqueeze(-1)


def _remember(sequence: Sequence, logits: torch.Tensor) -> _Memory:
    # On the CPU on purpose: a seed gives the same tokens on every device.
    generator = torch.Generator()
    if sequence.sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sequence.sampling.seed % 2**63)
    if not sequence.sampling.penalised:
        return _Memory(generator)
    vocabulary = logits.shape[-1]
    counts = torch.zeros(vocabulary, device=logits.device)
    answered = torch.tensor(sequence.output, dtype=torch.long, device=logits.device)
    counts.index_add_(0, answered, torch.ones(len(sequence.output), device=logits.device))
    seen = counts > 0
    seen[torch.tensor(sequence.prompt, device=logits.device)] = True
    return _Memory(generator, counts, seen)


def _penalise(row: torch.Tensor, sampling: Sampling, counts: torch.Tensor, seen: torch.Tensor) -> None:
    """OpenAI's presence and frequency penalties (answer only) and the repetition penalty (prompt too)."""
    factor = sampling.repetition_penalty
    row.copy_(torch.where(seen, torch.where(row > 0, row / factor, row * factor), row))
    row.sub_(counts * sampling.frequency_penalty + (counts > 0) * sampling.presence_penalty)


def _candidates(scores: torch.Tensor, rules: Rows[Sampling]) -> tuple[torch.Tensor, torch.Tensor]:
    """Chances and token ids [B, K], most likely first; what a row's rules exclude has chance 0."""
    vocabulary = scores.shape[-1]
    limits = [min(rule.top_k or vocabulary, vocabulary) for rule in rules]
    temperature = _column(scores, [max(rule.temperature, _COLDEST) for rule in rules])
    ranked, candidates = (scores / temperature).topk(max(limits), dim=-1)  # [B, K]
    rank = torch.arange(ranked.shape[-1], device=scores.device)
    ranked = ranked.masked_fill(rank >= _column(scores, limits), -torch.inf)
    chances = ranked.softmax(-1)
    before = chances.cumsum(-1) - chances
    outside = before >= _column(scores, [rule.top_p for rule in rules])
    outside |= chances < chances[:, :1] * _column(scores, [rule.min_p for rule in rules])
    outside[:, 0] = False
    return chances.masked_fill(outside, 0.0), candidates


def _with_logprobs(raw: torch.Tensor, chosen: Rows[int], rules: Rows[Sampling]) -> list[Sampled]:
    asked = [rule.logprobs for rule in rules if rule.logprobs is not None]
    if not asked:
        return [Sampled(token) for token in chosen]
    logprobs = raw.log_softmax(-1)  # [B, V]
    own = logprobs.gather(-1, torch.tensor(chosen, device=raw.device).unsqueeze(-1)).squeeze(-1).tolist()
    values, ids = (part.tolist() for part in logprobs.topk(min(max(asked), raw.shape[-1]), dim=-1))
    return [
        Sampled(token)
        if rule.logprobs is None
        else Sampled(token, own[row], tuple(zip(ids[row], values[row], strict=True))[: rule.logprobs])
        for row, (token, rule) in enumerate(zip(chosen, rules, strict=True))
    ]
