"""Whether a faster form of a causal model still is that model: teacher-forced, against fp32.

Both forms read the same texts and predict every next token. Letters: N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch

# Positions whose two best tokens are nearer than this (in nats) may go either way in that precision.
MARGINS: Mapping[str, float] = MappingProxyType({"float32": 0.001, "float16": 0.03, "bfloat16": 0.25})
# Of the other positions, the share that must have the same best token.
SAME_TOP = 0.999
# Held-out loss may be off by this share.
LOSS_OFF = 0.001


def coarser(precision: str, served: str) -> str:
    """Of a form's precision and that in which its model is served, the one with the wider margin."""
    return max((precision, served), key=lambda name: MARGINS.get(name, 0.0))


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was compared, and how far it agrees; losses are means per token in nats."""

    positions: int
    # Of them, those whose two best tokens are further apart than the margin.
    clear: int
    margin: float
    same_top: float
    loss: float
    loss_of_original: float
    finite: bool
    # Whose texts were read: "operator", "model folder", or "model" where it wrote them itself.
    texts: str = "model"

    @property
    def loss_off(self) -> float:
        """By which share of the original's the loss is off; negative is lower."""
        return self.loss / self.loss_of_original - 1.0 if self.loss_of_original > 0 else 0.0

    @property
    def wrong(self) -> str | None:
        """What is wrong with an unquantised form, or None."""
        if not self.finite:
            return "it answers with infinities or NaN"
        if self.same_top < SAME_TOP:
            return (
                f"the best token is the same at {self.same_top:.2%} of {self.clear} clear positions "
                f"({SAME_TOP:.1%} needed; clear: two best {self.margin:g} apart)"
            )
        if abs(self.loss_off) > LOSS_OFF:
            return f"the loss on held-out texts is off by {self.loss_off:+.2%} ({LOSS_OFF:.1%} allowed)"
        return None

    def as_json(self) -> dict[str, Any]:
        """Every figure, and what is wrong."""
        return {**asdict(self), "loss_off": self.loss_off, "wrong": self.wrong}


def agreement(
    expected: torch.Tensor,  # [N, V] logits of the original in fp32
    actual: torch.Tensor,  # [N, V]
    targets: torch.Tensor,  # [N] tokens that really came next
    precision: str,
) -> Agreement:
    """How far `actual` predicts what `expected` does, at the margin of its precision."""
    margin = MARGINS[precision]
    best = expected.topk(2, dim=-1)
    clear = (best.values[:, 0] - best.values[:, 1]) > margin  # [N]
    same = (actual.argmax(-1) == best.indices[:, 0])[clear]
    return Agreement(
        positions=len(targets),
        clear=int(clear.sum()),
        margin=margin,
        same_top=float(same.double().mean()) if len(same) else 1.0,
        loss=_loss(actual, targets),
        loss_of_original=_loss(expected, targets),
        finite=bool(actual.isfinite().all()),
    )


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits.float(), targets))
