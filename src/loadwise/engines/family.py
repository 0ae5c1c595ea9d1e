"""Qualities of models that were measured on the same held-out data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loadwise.errors import ConfigurationError

CARD = "loadwise.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyCard:
    """What a model folder says of its own measurement; losses compare within one family only."""

    family: str
    # Nats per token on data kept out of training.
    held_out_loss: float
    parameters: int


def read_card(folder: Path) -> FamilyCard | None:
    """The folder's card, or None when it has none; `ConfigurationError` when it cannot be understood."""
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        loss = float(values["held_out_loss_nats_per_token"])
        card = FamilyCard(
            family=str(values["family"]), held_out_loss=loss, parameters=int(values["parameters"])
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(f"{path} is no model card: {error!r}.", field="path") from None
    if not math.isfinite(loss) or card.parameters <= 0:
        raise ConfigurationError(f"{path}: loss must be finite and parameters above 0.", field="path")
    return card


def qualities(cards: Mapping[str, FamilyCard]) -> dict[str, float]:
    """Quality in 0..1 by name: exp(-(loss - best loss of its family)), so the best of each has 1."""
    best: dict[str, float] = {}
    for card in cards.values():
        best[card.family] = min(card.held_out_loss, best.get(card.family, math.inf))
    return {name: math.exp(best[card.family] - card.held_out_loss) for name, card in cards.items()}


def relative_costs(cards: Mapping[str, FamilyCard]) -> dict[str, float]:
    """Cost of a token relative to the smallest model's, by parameters, until it is measured."""
    smallest = min((card.parameters for card in cards.values()), default=1)
    return {name: card.parameters / smallest for name, card in cards.items()}
