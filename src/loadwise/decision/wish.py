"""What a request asks of a choice: how much quality and speed count, and at which level of load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from loadwise.decision.facts import MemberPressure, RequestFacts, StrategyName
from loadwise.decision.strategy import Strategy

_LEVEL: Final = {StrategyName.QUALITY: 0, StrategyName.BALANCED: 1, StrategyName.PERFORMANCE: 2}


class Wish(NamedTuple):
    """What a request asks of a choice: weights of quality and speed (sum 1), and the level of load."""

    quality: float
    speed: float
    preferred: bool
    level: int
    # What is allowed of the targets: 1, more for who prefers quality, less for who is in a hurry.
    target: float
    # Whether queues are known; otherwise the strategy alone tells load.
    pressed: bool


# By level of load, and whether queues are known.
_NO_WISHES: Final = {
    (name, pressed): Wish(0.5, 0.5, False, level, 1.0, pressed)
    for name, level in _LEVEL.items()
    for pressed in (False, True)
}


def wish_of(request: RequestFacts, strategy: Strategy, pressures: Mapping[str, MemberPressure]) -> Wish:
    """What the request and the strategy in force ask of a choice."""
    quality, speed = request.quality_preference, request.speed_preference
    if quality is None and speed is None:
        return _NO_WISHES[strategy.name, bool(pressures)]
    wanted = 0.5 if quality is None else min(1.0, max(0.0, quality))
    hurry = 0.5 if speed is None else min(1.0, max(0.0, speed))
    both = wanted + hurry
    return Wish(
        quality=wanted / both if both > 0.0 else 0.5,
        speed=hurry / both if both > 0.0 else 0.5,
        preferred=True,
        level=_LEVEL[strategy.name],
        target=1.0 + 0.3 * (wanted - hurry),
        pressed=bool(pressures),
    )


NO_WISH: Final = _NO_WISHES[StrategyName.BALANCED, True]
