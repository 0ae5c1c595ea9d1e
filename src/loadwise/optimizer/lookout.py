"""Looks out after each turn: the timeline gets a sample of the load, and slow figures are kept a while."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from loadwise.optimizer.improvement_view import improvement_json
from loadwise.ports import JsonObject

if TYPE_CHECKING:
    from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer

# The measured gain moves slowly and costs more than the rest together.
GAIN_EVERY_S: Final = 10.0


class Lookout:
    """`sample` may be called at any time and as often as one likes."""

    def __init__(self, optimizer: ServerSideOptimizer) -> None:
        self._optimizer = optimizer
        self._gain: tuple[float, JsonObject] | None = None

    def sample(self) -> None:
        """The load as it was decided on is in the timeline."""
        optimizer = self._optimizer
        decision = optimizer.cycle.decision
        waiting = [r.waiting_requests for r in optimizer.readings.latest() if r.waiting_requests is not None]
        optimizer.recorder.timeline.sampled(
            optimizer.clock.monotonic_s(),
            load=None if decision is None else decision.worst.score.value,
            strategy=None if decision is None else decision.worst.strategy.name.value,
            waiting=float(sum(waiting)) if waiting else None,
        )

    def improvement(self) -> JsonObject:
        """The proof of improvement, at most ten seconds old."""
        kept, now_s = self._gain, self._optimizer.clock.monotonic_s()
        if kept is None or now_s - kept[0] >= GAIN_EVERY_S:
            optimizer = self._optimizer
            made = improvement_json(optimizer.recorder.experiments, optimizer.config.experiment)
            kept = self._gain = (now_s, made)
        return kept[1]
