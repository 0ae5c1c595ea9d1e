"""What selecting a model gives back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

KEYS: Final = ("model_id", "model", "propensity", "reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection(Mapping[str, Any]):
    """A selected model and why; reads like a mapping too (`selection["model"]`)."""

    model_id: str
    model: Any
    # 0..1, the chance that this member had.
    propensity: float
    reason: str

    def __getitem__(self, key: str) -> Any:
        if key not in KEYS:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(KEYS)

    def __len__(self) -> int:
        return len(KEYS)
