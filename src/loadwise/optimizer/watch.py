"""Looks at the server's health once a second and tells of what is wrong, also when the loop stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from loadwise.decision.alert_facts import Health
from loadwise.decision.alerting import conditions
from loadwise.decision.improvement import Improvement
from loadwise.logs import get_logger
from loadwise.optimizer.silences import silences
from loadwise.ports import JsonObject
from loadwise.telemetry import names
from loadwise.telemetry.alerts import AlertBook

if TYPE_CHECKING:
    from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer

log = get_logger(__name__)
EVERY_S: Final = 1.0
# The measured gain moves slowly and costs more than the rest together.
IMPROVEMENT_EVERY_S: Final = 30.0


class Watch:
    """Evaluates the alert rules; `start` does so every second, apart from the control loop."""

    def __init__(self, optimizer: ServerSideOptimizer, alerts: AlertBook) -> None:
        self._optimizer = optimizer
        self.alerts = alerts
        self._improvement: tuple[float, Improvement | None] | None = None
        # Replicas that were never read, and since when they have been asked.
        self._unread: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def evaluate(self) -> None:
        """Alerts begin and end as the figures say now."""
        made = self._optimizer
        policy = made.configurations.policy
        found = conditions(policy, self.health(), self.alerts.holding())
        for alert in self.alerts.update(found, made.clock.monotonic_s(), made.clock.wall_s()):
            if not alert.resolved:
                made.telemetry.count(names.ALERTS_FIRED, alert.name, alert.severity)

    async def start(self) -> None:
        """The rules are evaluated once a second; nothing happens when they are already."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="loadwise-watch")

    async def stop(self) -> None:
        """The task has ended; nothing happens when there is none."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            try:
                self.evaluate()
            except Exception:  # whatever is wrong with one look, the next one may see more
                log.exception("health_not_evaluated")
                self._optimizer.cycle.survived("alerts")
            await asyncio.sleep(EVERY_S)

    # --- the figures ---

    def health(self) -> Health:
        """What alert rules read, as it is now."""
        made = self._optimizer
        recorder, now_s = made.recorder, made.clock.monotonic_s()
        recent, ages = recorder.service(), self._reading_ages(now_s)
        return Health(
            error_fraction=recent.error_fraction,
            avg_latency_ms=recent.avg_latency_ms,
            improvement=self.improvement(),
            members=len(made.ensemble_manager.fleet.active()),
            members_out=made.ensemble_manager.members_out(),
            replicas_out=made.ensemble_manager.replicas_out(),
            failed_builds=failed_builds(made.model_compiler.compilation_stats),
            objectives=recorder.objective_counts.windows(now_s),
            queues=_queues(made),
            reading_ages_s=ages,
            pool_ages_s=_pool_ages(made, ages),
            loop_age_s=_loop_age(made, now_s),
            silences=silences(made.director, made.readings, recorder, now_s),
            rollback=made.configurations.rollback(now_s),
            rollouts_back_s=_rollouts_back(made, now_s),
            faults_ago_s={part: now_s - at_s for part, at_s in made.cycle.failed_s.items()},
            journal_lost_ago_s=made.chronicle.lost_ago_s(now_s),
            monitoring_age_s=None if recorder.monitoring is None else recorder.monitoring.age_s(),
        )

    def _reading_ages(self, now_s: float) -> dict[str, float]:
        """Per replica that is asked, since when it was not read."""
        readings = self._optimizer.readings
        ages, asked = readings.ages_s(now_s), readings.asked()
        self._unread = {name: self._unread.get(name, now_s) for name in asked if name not in ages}
        return {**ages, **{name: now_s - since_s for name, since_s in self._unread.items()}}

    def improvement(self) -> Improvement | None:
        """What optimisation gained, at most half a minute ago; None without enough evidence."""
        kept, now_s = self._improvement, self._optimizer.clock.monotonic_s()
        if kept is None or now_s - kept[0] >= IMPROVEMENT_EVERY_S:
            kept = self._improvement = (now_s, self._optimizer.recorder.improvement())
        return kept[1]


def _queues(made: ServerSideOptimizer) -> dict[str, float]:
    decision = made.cycle.decision
    if decision is None:
        return {}
    return {
        name: pool.score.parts["queue"]
        for name, pool in decision.pools.items()
        if "queue" in pool.score.parts
    }


def _pool_ages(made: ServerSideOptimizer, ages: Mapping[str, float]) -> dict[str, float]:
    """Per pool, the age of its freshest reading; pools whose engines are not asked are not known."""
    found: dict[str, float] = {}
    for pool, replicas in made.cycle.pools().items():
        known = [ages[name] for name in replicas if name in ages]
        if known:
            found[pool] = min(known)
    return found


def _loop_age(made: ServerSideOptimizer, now_s: float) -> float | None:
    decision = made.cycle.decision
    return None if decision is None or not made.director.running else now_s - decision.decided_s


def _rollouts_back(made: ServerSideOptimizer, now_s: float) -> dict[str, float]:
    """Since when rollouts are taken back, by route, and key where they are of one."""
    return {
        _named(rollout): rollout["seconds"]
        for rollout in made.recorder.experiments.rollouts.as_json(now_s)
        if rollout["harm"] is not None
    }


def _named(rollout: JsonObject) -> str:
    route, key = str(rollout["route"]), rollout["key"]
    return route if key is None else f"{route} for {key}"


def failed_builds(stats: Mapping[str, JsonObject]) -> dict[str, str]:
    """Models of which some mode's latest build failed, whatever serves meanwhile, with its cause."""
    failed = {}
    for model_id, found in stats.items():
        for build in found["builds"].values():
            if build["state"] == "failed" or (build["state"] == "promoted" and build["failures"]):
                failed[model_id] = build["cause"]
    return failed
