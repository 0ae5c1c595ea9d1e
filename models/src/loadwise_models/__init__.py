"""The model family that ships with loadwise: where it lies, and how well it predicts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Quality", "family", "quality"]

_FOLDER = Path(__file__).parent
# From the smallest to the largest.
_NAMES = ("fast", "balanced", "accurate")


@dataclass(frozen=True)
class Quality:
    """What a member's loadwise.json says, as measured after training.

    The loss is in nats per token, in fp32 at full context, over modules kept out of training.
    """

    name: str
    family: str
    parameters: int
    held_out_loss_nats_per_token: float
    held_out_tokens: int
    trained_tokens: int


def family() -> dict[str, Path]:
    """Each member's name and folder, from the smallest to the largest."""
    return {name: _FOLDER / name for name in _NAMES}


def quality() -> dict[str, Quality]:
    """Each member's name and measured quality, from the smallest to the largest."""
    return {name: _quality(folder) for name, folder in family().items()}


def _quality(folder: Path) -> Quality:
    facts = json.loads((folder / "loadwise.json").read_text(encoding="utf-8"))
    return Quality(**{field: facts[field] for field in Quality.__dataclass_fields__})
