"""The preallocated key/value cache: one row per place, static shapes: L of [P, H, S, D].

L layers, P places, H key/value heads, S columns (positions + 1: column 0 is scratch), D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from loadwise.torch_engine.memory import untouched

# Spans grow in these steps, so that a compiled step and the allocator see few shapes.
SPAN_STEP = 64
_SPARE = 8


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one position needs; keys and values may differ in head size."""

    layers: int
    heads: int
    key_size: int
    value_size: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values of one token over all layers."""
        numbers = self.layers * self.heads * (self.key_size + self.value_size)
        return numbers * int(self.dtype.itemsize)


def columns_for(tokens: int) -> int:
    """Columns that hold `tokens` positions and the scratch column, rounded up to the span's step."""
    return -(-(tokens + 1) // SPAN_STEP) * SPAN_STEP


class KeyValueCache:
    """Owns the memory. Rows are places; a sequence's token at position p is in column p + 1.

    A `thin` one on the processor takes memory only where it is written, at the price of a page fault there:
    for what is tried beside requests, not for serving.
    """

    def __init__(
        self, shape: CacheShape, places: int, tokens: int, device: torch.device, *, thin: bool = False
    ) -> None:
        self.shape = shape
        # The widest span that attention may see.
        self.columns = columns_for(tokens)
        # Compiled steps run at least two rows: torch specialises sizes of 1.
        self.rows = max(places, 2)
        # A span of all columns would be contiguous, one layout more for compilers to tell apart.
        size = (self.rows, shape.heads, self.columns + _SPARE)
        # L tensors of [P, H, S, D], each its own memory: views of one would drag the whole into every trace.
        thin = thin and device.type == "cpu"
        self.keys = self._layers((*size, shape.key_size), device, thin)
        self.values = self._layers((*size, shape.value_size), device, thin)

    def _layers(self, size: tuple[int, ...], device: torch.device, thin: bool) -> tuple[torch.Tensor, ...]:
        dtype = self.shape.dtype
        if thin:
            return tuple(untouched(size, dtype) for _ in range(self.shape.layers))
        return tuple(torch.zeros(size, dtype=dtype, device=device) for _ in range(self.shape.layers))

    def row(self, place: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values of one place: L views of [1, H, S, D] each."""
        pick = slice(place, place + 1)
        return [keys[pick] for keys in self.keys], [values[pick] for values in self.values]

    def move(self, source: int, target: int, length: int) -> None:
        """The first `length` tokens of place `source` are also in place `target`."""
        used = slice(0, length + 1)
        for layer in (*self.keys, *self.values):
            layer[target, :, used] = layer[source, :, used]
