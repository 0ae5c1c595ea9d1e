"""Evaluates alerts beside a server and sends them where its settings say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer
from loadwise.ports import Clock
from loadwise.settings import AlertSettings
from loadwise.telemetry import names
from loadwise.telemetry.prometheus import GaugeValue, Telemetry
from loadwise.telemetry.sinks import REPEAT_S, QueuedSink, Target, alertmanager_body, webhook_body


def queued_sinks(settings: AlertSettings, clock: Clock) -> list[QueuedSink]:
    """A sink for every webhook and every Alertmanager, numbered in the order of the settings."""
    sinks = []
    for number, hook in enumerate(settings.webhooks):
        target = Target(name=f"webhook-{number}", url=str(hook.url), headers=hook.headers())
        sinks.append(QueuedSink(target, webhook_body, size=settings.queue_size))
    for number, url in enumerate(settings.alertmanagers):
        address = str(url).rstrip("/") + "/api/v2/alerts"
        target = Target(name=f"alertmanager-{number}", url=address, headers={})
        sinks.append(
            QueuedSink(
                target,
                lambda alert: alertmanager_body(alert, clock.wall_s()),
                size=settings.queue_size,
                repeat_s=REPEAT_S,
            )
        )
    return sinks


@asynccontextmanager
async def alerting(
    settings: AlertSettings, optimizer: ServerSideOptimizer, clock: Clock
) -> AsyncIterator[None]:
    """Alerts are evaluated every second, also while the loop stands still, and go where the settings say."""
    sinks = queued_sinks(settings, clock)
    optimizer.alerts.add(sinks)
    _measured(sinks, optimizer.telemetry)
    await optimizer.watch.start()
    try:
        yield
    finally:
        await optimizer.watch.stop()
        await asyncio.gather(*(asyncio.to_thread(sink.close) for sink in sinks))


def _measured(queued: Sequence[QueuedSink], telemetry: Telemetry) -> None:
    """Metrics count what becomes of the sinks' alerts."""

    def heard(sink: str, result: str) -> None:
        telemetry.count(names.SINK_ALERTS, sink, result)

    for sink in queued:
        sink.on_result = heard
    telemetry.gauges_from(lambda: _lengths(queued))


def _lengths(queued: Sequence[QueuedSink]) -> list[GaugeValue]:
    return [(names.SINK_QUEUE, (sink.target.name,), float(len(sink))) for sink in queued]
