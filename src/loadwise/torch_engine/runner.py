"""Owns the device: carries out plans. One thread calls it; nobody else touches the model or the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from typing import Any

import torch

from loadwise.torch_engine.cache import SPAN_STEP, KeyValueCache, columns_for
from loadwise.torch_engine.loading import LoadedModel
from loadwise.torch_engine.sampler import Sampler
from loadwise.torch_engine.scheduler import Chunk, Plan
from loadwise.torch_engine.sequence import Sampled, Sequence
from loadwise.torch_engine.step import Step, attention_mask

# A step of a small model is thousands of operations of microseconds each. Sharing each of them among threads
# gains little on an idle machine, and on a busy one every operation waits for the slowest thread.
SMALL_PARAMETERS = 50_000_000

_NOISE_SEED = 13

StepFunction = Callable[..., torch.Tensor]


class Runner:
    """Runs plans over one model and one cache; `step` may be replaced by an equal, faster one."""

    def __init__(self, loaded: LoadedModel, places: int, context_tokens: int) -> None:
        self.loaded = loaded
        self.places = places
        self.cache = KeyValueCache(loaded.shape, places, context_tokens, loaded.device)
        self.sampler = Sampler(loaded.eos_token_ids)
        self._original = Step(loaded.model).eval()
        # Decodes: one token for each of several sequences. Prompts vary in shape and keep the original.
        self.step: StepFunction = self._original

    @property
    def original(self) -> torch.nn.Module:
        """The step as the model has it, for a compiler to start from."""
        return self._original

    def prepare(self) -> None:
        """The calling thread computes as suits the model; call it on the thread that will `run`."""
        small = sum(parameter.numel() for parameter in self.loaded.model.parameters()) < SMALL_PARAMETERS
        if self.loaded.device.type == "cpu" and small:
            torch.set_num_threads(1)

    def run(self, plan: Plan) -> list[tuple[Sequence, Sampled]]:
        """The plan's new tokens; keys and values of everything it read are in the cache."""
        # inference_mode would mark tensors that compiled steps cannot take ("Cannot set version_counter").
        with torch.no_grad():
            for move in plan.moves:
                self.cache.move(move.source, move.target, move.length)
            sampled = [pair for chunk in plan.chunks for pair in self._prefill(chunk)]
            if plan.decodes:
                logits = self.step(*self._decode_inputs(plan.decodes))  # [B, V], B by place
                rows = logits[[sequence.place for sequence in plan.decodes]]
                sampled += zip(plan.decodes, self.sampler.sample(rows, plan.decodes), strict=True)
        return sampled

    def forget(self, sequence: Sequence) -> None:
        """The sampler keeps nothing of the sequence."""
        self.sampler.forget(sequence)

    def decode_examples(self) -> list[tuple[Any, ...]]:
        """Inputs of two typical decodes over a cache of their own: few rows and short, many and long."""
        cache = self._thin_cache()
        shapes = {(2, cache.columns // 2 - 1), (self.cache.rows, cache.columns - 1)}
        return [self._example(cache, rows, length) for rows, length in sorted(shapes)]

    def decode_buckets(self) -> Iterator[tuple[Any, ...]]:
        """Inputs of decodes of every size that is served, in powers of two; the first row looks at noise."""
        cache, noise = self._thin_cache(), torch.Generator(self.loaded.device).manual_seed(_NOISE_SEED)
        for layer in (*cache.keys, *cache.values):
            # All rows would take as much memory as the cache that serves.
            layer[0].normal_(generator=noise)
        for rows in _doubling(2, cache.rows):
            for columns in _doubling(SPAN_STEP, cache.columns):
                yield self._example(cache, rows, columns - 1)

    def _thin_cache(self) -> KeyValueCache:
        """One of the same sizes for what is tried beside requests."""
        tokens = self.cache.columns - 1
        return KeyValueCache(self.loaded.shape, self.cache.rows, tokens, self.loaded.device, thin=True)

    def decode_dynamic_shapes(self) -> tuple[Any, ...]:
        """Which sizes of those inputs vary: rows B and span S; the cache itself never does."""
        batch = self._dimension("rows", 2, self.cache.rows)
        span = self._dimension("span", SPAN_STEP, self.cache.columns)
        layers = (None,) * self.loaded.shape.layers
        return {0: batch}, {0: batch}, {0: batch, 3: span}, layers, layers, {0: batch}

    @staticmethod
    def _dimension(name: str, low: int, high: int) -> Any:
        """A size that varies, or None where there is only one."""
        return torch.export.Dim(name, min=low, max=high) if low < high else None

    def _example(self, cache: KeyValueCache, rows: int, length: int) -> tuple[Any, ...]:
        columns = self._long([[length]] * rows)  # [B, 1]
        mask = attention_mask(columns, columns_for(length), self.loaded.shape.dtype)
        return torch.zeros_like(columns), columns - 1, mask, cache.keys, cache.values, columns

    def _prefill(self, chunk: Chunk) -> list[tuple[Sequence, Sampled]]:
        """Reads a piece of one prompt; the first token comes with the last piece."""
        sequence, end = chunk.sequence, chunk.start + chunk.length
        tokens = self._long([sequence.prompt[chunk.start : end]])  # [1, T]
        positions = torch.arange(chunk.start, end, device=self.loaded.device).unsqueeze(0)  # [1, T]
        columns = positions + 1
        mask = attention_mask(columns, columns_for(end), self.loaded.shape.dtype)  # [1, 1, T, S]
        keys, values = self.cache.row(sequence.place or 0)
        logits = self._original(tokens, positions, mask, keys, values, columns)  # [1, V]
        if not chunk.last:
            return []
        return [(sequence, self.sampler.sample(logits, [sequence])[0])]

    def _decode_inputs(self, sequences: Rows[Sequence]) -> tuple[Any, ...]:
        """Row i is place i; rows that do not decode now are idle: scratch column, nobody reads them."""
        batch = max(2, 1 + max(sequence.place or 0 for sequence in sequences))
        tokens, columns = [0] * batch, [0] * batch
        for sequence in sequences:
            tokens[sequence.place or 0] = sequence.output[-1]
            columns[sequence.place or 0] = sequence.computed + 1
        span = columns_for(max(columns))
        columns_t = self._long(columns).unsqueeze(1)  # [B, 1]
        mask = attention_mask(columns_t, span, self.loaded.shape.dtype)  # [B, 1, 1, S]
        positions = (columns_t - 1).clamp_min(0)  # [B, 1]
        return self._long(tokens).unsqueeze(1), positions, mask, self.cache.keys, self.cache.values, columns_t

    def _long(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.loaded.device)


def _doubling(least: int, most: int) -> Iterator[int]:
    """`least`, twice as much, and so on, and `most`."""
    while least < most:
        yield least
        least *= 2
    yield most
