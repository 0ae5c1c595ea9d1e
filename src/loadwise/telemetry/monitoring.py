"""A monitoring system beside us, such as Deep Tree Echo's: it hears of requests and alerts, and is read.

`metrics_collector` offers `record_request_start() -> id`, `record_request_end(id, success, response_time_ms)`
and `get_current_metrics()`; `alert_manager` offers `add_notification_handler`. Whatever they raise, requests
and the control loop go on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isfinite
from typing import Any, Final

from loadwise.decision.facts import Outcome, ServiceReading
from loadwise.decision.fault import Fault, fault_of
from loadwise.errors import LoadwiseError
from loadwise.logs import get_logger
from loadwise.ports import Alert, Clock, Dispatch

log = get_logger(__name__)
# The last good figures count for so long.
KEPT_S: Final = 30.0
HANDLER_LISTS: Final = ("notification_handlers", "_notification_handlers")


class MonitoringError(LoadwiseError):
    """The monitoring system could not be read."""


class Monitoring:
    """Feeds a metrics collector, reads it, and keeps what it last said."""

    def __init__(self, metrics_collector: Any, clock: Clock) -> None:
        self._collector = metrics_collector
        self._clock = clock
        self._began_s = clock.monotonic_s()
        self._good: ServiceReading | None = None
        self._failing = False
        # Hears of each call that the collector failed.
        self.on_failed: Callable[[], None] = lambda: None
        # Requests that the collector was told of, by request and replica.
        self._started: dict[tuple[str, str], list[Any]] = {}

    # --- what it hears ---

    def started(self, dispatch: Dispatch) -> None:
        """The collector knows of the request."""
        found = self._told("record_request_start")
        if found is not None:
            self._started.setdefault((dispatch.request.request_id, dispatch.replica_id), []).append(found)

    def ended(self, outcome: Outcome) -> None:
        """The collector knows how it went; a request that was not announced begins and ends at once."""
        key = (outcome.request_id, outcome.replica_id)
        waiting = self._started.get(key)
        found = waiting.pop() if waiting else self._told("record_request_start")
        if not waiting:
            self._started.pop(key, None)
        if found is not None:
            self._told(
                "record_request_end",
                found,
                fault_of(outcome) is not Fault.MEMBER,
                1000.0 * (outcome.total_s or 0.0),
            )

    def _told(self, method: str, *values: Any) -> Any:
        try:
            return getattr(self._collector, method)(*values)
        except Exception as error:  # noqa: BLE001 - of another's making: no request may fail by it
            log.warning("monitoring_not_told", method=method, error=type(error).__name__)
            self.on_failed()
            return None

    # --- what it says ---

    async def read(self) -> None:
        """Its figures are the latest; `MonitoringError` when there are none, and the last good ones stay."""
        try:
            said = self._collector.get_current_metrics()
            self._good = _reading(
                await said if inspect.isawaitable(said) else said, self._clock.monotonic_s()
            )
        except Exception as error:
            self._failing = True
            message = f"get_current_metrics failed: {type(error).__name__}: {error}"
            raise MonitoringError(message) from error
        self._failing = False

    def age_s(self) -> float | None:
        """Since it was last read well, while it fails; None while it is well."""
        if not self._failing:
            return None
        since_s = self._began_s if self._good is None else self._good.read_s
        return self._clock.monotonic_s() - since_s

    @property
    def lost(self) -> bool:
        """Whether even the last good figures are too old to decide on."""
        age_s = self.age_s()
        return age_s is not None and age_s > KEPT_S

    def filled(self, own: ServiceReading) -> ServiceReading:
        """What we measured ourselves, and the monitoring system's figures where we have none."""
        good = self._good
        if good is None or self._clock.monotonic_s() - good.read_s > KEPT_S:
            return own
        fields = ("requests_per_s", "avg_latency_ms", "error_fraction")
        known = {n: getattr(good, n) for n in fields if getattr(own, n) is None}
        # Either may not see all that is in flight.
        active = [n for n in (own.active_requests, good.active_requests) if n is not None]
        return replace(own, active_requests=max(active, default=None), **known)


def _reading(said: Any, now_s: float) -> ServiceReading:
    """Figures by their names, of a mapping or of attributes; what is missing or makes no sense is None."""
    if said is None:
        raise ValueError("it returned nothing")
    active = _figure(said, "active_requests")
    errors = _figure(said, "error_rate")
    return ServiceReading(
        read_s=now_s,
        active_requests=None if active is None else round(active),
        requests_per_s=_figure(said, "throughput_rps"),
        avg_latency_ms=_figure(said, "avg_response_time_ms"),
        error_fraction=errors if errors is not None and errors <= 1.0 else None,
    )


def _figure(said: Any, name: str) -> float | None:
    value = said.get(name) if isinstance(said, Mapping) else getattr(said, name, None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if isfinite(value) and value >= 0 else None


class HandlerSink:
    """Hands our alerts to the notification handlers of an alert manager: those it has, and those it gets."""

    def __init__(self, alert_manager: Any) -> None:
        self._manager = alert_manager
        # Hears of each handler that failed.
        self.on_failed: Callable[[], None] = lambda: None
        self._later: list[Callable[[Any], Any]] = []
        register = alert_manager.add_notification_handler

        def add_notification_handler(handler: Callable[[Any], Any], *more: Any, **named: Any) -> Any:
            self._later.append(handler)
            return register(handler, *more, **named)

        # The one method that is known of it says who wants to hear of alerts.
        alert_manager.add_notification_handler = add_notification_handler

    def _handlers(self) -> list[Callable[[Any], Any]]:
        lists = (getattr(self._manager, name, None) for name in HANDLER_LISTS)
        had = next((found for found in lists if isinstance(found, list)), [])
        return list(dict.fromkeys([*had, *self._later]))

    def deliver(self, alert: Alert) -> None:
        """Every handler was called with the alert; one that fails does not keep it from the others."""
        for handler in self._handlers():
            try:
                handler(alert)
            except Exception:  # of another's making
                log.exception("notification_handler_failed", alert=alert.name)
                self.on_failed()
