"""One forward pass over the key/value cache: any shape, no state of its own, so that it can be compiled.

Letters: L layers, B batch rows, T tokens per row in this pass, H key/value heads, S cache columns,
D head size, V vocabulary. Column 0 of the cache is scratch: idle rows write there and nobody reads it, so
the token at position p lives in column p + 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache


class CacheView(Cache):  # type: ignore[misc]  # transformers is not typed
    """The engine's cache as a transformers model sees it during one pass."""

    def __init__(
        self,
        keys: Sequence[torch.Tensor],  # L of [P, H, S, D]
        values: Sequence[torch.Tensor],
        columns: torch.Tensor,  # [B, T]
        span: int,
    ) -> None:
        super().__init__(layers=[])
        self.keys, self.values, self.columns, self.span = keys, values, columns, span
        # [B, 1]
        self.rows = torch.arange(columns.shape[0], device=columns.device).unsqueeze(1)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New keys and values are written; those of every row's first `span` columns come back."""
        keys, values, batch = self.keys[layer_idx], self.values[layer_idx], self.columns.shape[0]
        # Advanced indices around a slice put B and T first: [B, T, H, D].
        keys[self.rows, :, self.columns] = key_states.transpose(1, 2)
        values[self.rows, :, self.columns] = value_states.transpose(1, 2)
        return keys[:batch, :, : self.span], values[:batch, :, : self.span]  # [B, H, span, D]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that attention sees."""
        return self.span

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the keys; the mask is brought ready-made, so this is for checks only."""
        return self.span, 0


class Step(torch.nn.Module):  # type: ignore[misc]  # torch is not followed
    """The model over the engine's cache: logits of each row's last token."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        # Without it a long prompt would compute V logits for each of its tokens.
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.options: dict[str, Any] = {"logits_to_keep": 1} if keeps else {}

    def forward(
        self,
        tokens: torch.Tensor,  # [B, T]
        positions: torch.Tensor,  # [B, T]
        mask: torch.Tensor,  # [B, 1, T, span], added to attention scores
        keys: Sequence[torch.Tensor],  # L of [P, H, S, D], P >= B, written in place
        values: Sequence[torch.Tensor],
        columns: torch.Tensor,  # [B, T]
    ) -> torch.Tensor:
        """Logits [B, V] after each row's last token; keys and values of all tokens are in the cache."""
        cache = CacheView(keys, values, columns, mask.shape[-1])
        answer = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **self.options,
        )
        return answer.logits[:, -1]


def attention_mask(columns: torch.Tensor, span: int, dtype: torch.dtype) -> torch.Tensor:
    """[B, 1, T, span] from columns [B, T]: 0 where a token may look, the lowest number elsewhere."""
    column = torch.arange(span, device=columns.device)  # [span]
    own = columns[:, None, :, None]  # [B, 1, T, 1]
    # An idle row (own column 0) sees the scratch column alone: a row that saw nothing would be NaN.
    visible = (column <= own) & ((column > 0) | (own == 0))
    mask = torch.zeros(visible.shape, dtype=dtype, device=columns.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)
