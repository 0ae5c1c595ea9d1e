"""Looks out after each turn: the timeline gets a sample of the load, and slow figures are kept a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

from loadwise.optimizer import undoing
from loadwise.optimizer.improvement_view import improvement_json
from loadwise.ports import JsonObject
from loadwise.settings import OptimizationConfig
from loadwise.telemetry.stretches import Stretch

if TYPE_CHECKING:
    from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer

# The measured gain moves slowly and costs more than the rest together.
GAIN_EVERY_S: Final = 10.0
# Newest changes that the page shows.
SHOWN_CHANGES: Final = 100


class Lookout:
    """`sample` may be called at any time and as often as one likes."""

    def __init__(self, optimizer: ServerSideOptimizer) -> None:
        self._optimizer = optimizer
        self._gain: tuple[float, JsonObject] | None = None
        # How many changes were known when they were told last, and these.
        self._told: tuple[int, list[undoing.Told]] = (0, [])
        # By the length of their stretches, and what was counted in each.
        self._points: dict[float, dict[tuple[float, ...], JsonObject]] = {}
        self._config: tuple[OptimizationConfig, JsonObject] | None = None

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

    def points(
        self, step_s: float, stretches: Sequence[Stretch], make: Callable[[Stretch], JsonObject]
    ) -> list[JsonObject]:
        """The points of a chart; those of the two newest stretches are kept while nothing more is counted."""
        known = self._points.get(step_s, {})
        found = {stretch.revision: known.get(stretch.revision) or make(stretch) for stretch in stretches}
        self._points[step_s] = dict(list(found.items())[-2:])
        return list(found.values())

    def changes(self) -> list[JsonObject]:
        """The newest changes as people read them, newest first; only how long ago they were is made anew."""
        chronicle = self._optimizer.chronicle
        if self._told[0] != chronicle.heard:
            newest = islice(undoing.told(chronicle.newest()), SHOWN_CHANGES)
            self._told = chronicle.heard, list(newest)
        now_s = self._optimizer.clock.wall_s()
        return [found.at(now_s) for found in self._told[1]]

    def config(self) -> JsonObject:
        """The configuration in force as JSON values, not to be changed."""
        kept, now = self._config, self._optimizer.config
        if kept is None or kept[0] is not now:
            kept = self._config = (now, now.model_dump(mode="json"))
        return kept[1]
