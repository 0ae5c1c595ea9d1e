"""Where alerts go: a webhook, or Alertmanager; delivered by a thread of their own, in order, until it worked.

A sink that is down or slow keeps its alerts in a bounded queue and delays nobody; addresses come from the
configuration alone, and no redirect is followed to another one.
"""

from __future__ import annotations

import http.client
import json
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from loadwise.logs import get_logger
from loadwise.ports import Alert, JsonObject
from loadwise.telemetry.alerts import alert_json

log = get_logger(__name__)
TIMEOUT_S: Final = 10.0
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 60.0
# Alertmanager forgets an alert that is not told again; it is told this often, as Prometheus does.
REPEAT_S: Final = 60.0
# Receivers that say so want the same again later.
AGAIN: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An address to post JSON to, and headers of the operator's."""

    name: str
    url: str
    headers: Mapping[str, str]


class _Refused(Exception):
    """The receiver does not want this alert; the next one may fare better."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


# No proxies of the environment, no redirects: only the address that was configured is asked.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


def post(target: Target, value: Any) -> None:
    """The value was taken; `_Refused` when the receiver will never take it, `OSError` when it may later."""
    headers = {"content-type": "application/json", **target.headers}
    # The scheme was checked by the settings.
    request = urllib.request.Request(target.url, json.dumps(value).encode(), headers)  # noqa: S310
    try:
        with _OPENER.open(request, timeout=TIMEOUT_S):
            return
    except urllib.error.HTTPError as error:
        error.close()
        if 300 <= error.code < 500 and error.code not in AGAIN:
            raise _Refused(f"status {error.code}") from None
        raise OSError(f"status {error.code}") from None
    except http.client.HTTPException as error:
        raise OSError(f"its answer is no HTTP ({type(error).__name__})") from None


class QueuedSink:
    """Delivers alerts to one target, oldest first; what does not fit the queue is counted as dropped.

    Active alerts are told again every `repeat_s` seconds. May be given alerts from any thread.
    """

    def __init__(
        self,
        target: Target,
        shape: Callable[[Alert], Any],
        *,
        size: int = 1000,
        repeat_s: float | None = None,
    ) -> None:
        self.target = target
        self._shape = shape
        self._size = size
        self._repeat_s = repeat_s
        # Hears the sink's name and "delivered", "refused" or "dropped" of each alert.
        self.on_result: Callable[[str, str], None] = lambda name, result: None
        self._queue: deque[Alert] = deque()
        self._active: dict[tuple[str, str], Alert] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def deliver(self, alert: Alert) -> None:
        """The alert waits for its delivery, or counts as dropped when the queue is full."""
        with self._changed:
            if len(self._queue) >= self._size or self._closing:
                self.on_result(self.target.name, "dropped")
                return
            self._queue.append(alert)
            self._start()
            self._changed.notify_all()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name=f"loadwise-sink-{self.target.name}", daemon=True
            )
            self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Waits until nothing waits any more; False when that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """What waits was given `timeout_s` seconds to be delivered; nothing more is taken."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while (alert := self._next()) is not None:
            try:
                post(self.target, self._shape(alert))
            except _Refused as error:
                log.error("alert_refused", sink=self.target.name, alert=alert.name, reason=str(error))
                self._done(alert, "refused")
            except OSError as error:
                reason = getattr(error, "reason", error)
                log.warning("sink_unreachable", sink=self.target.name, reason=str(reason), waiting=len(self))
                if self._pause(pause_s):
                    return
                pause_s = min(LONGEST_PAUSE_S, 2.0 * pause_s)
                continue
            except Exception as error:  # noqa: BLE001 - one alert must not silence those behind it
                # Its message may hold the operator's header.
                log.error("alert_not_written", sink=self.target.name, reason=type(error).__name__)
                self._done(alert, "refused")
            else:
                self._done(alert, "delivered")
            pause_s = FIRST_PAUSE_S

    def _next(self) -> Alert | None:
        """The oldest alert that waits, or an active one that is due again; None at the end."""
        with self._changed:
            while not self._queue:
                if self._closing:
                    return None
                if not self._changed.wait(self._repeat_s if self._active else None):
                    self._queue.extend(self._active.values())
            return self._queue[0]

    def _done(self, alert: Alert, result: str) -> None:
        self.on_result(self.target.name, result)
        with self._changed:
            self._queue.popleft()
            if self._repeat_s is not None:
                self._active.pop(alert.key, None)
                if not alert.resolved:
                    self._active[alert.key] = alert
            self._changed.notify_all()

    def _pause(self, seconds: float) -> bool:
        """Waits before another try; True when there is no time for one."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closing, seconds)


# --- what receivers read -----------------------------------------------------------------------


def webhook_body(alert: Alert) -> JsonObject:
    """The alert as a webhook gets it."""
    return {
        "version": 1,
        "status": "resolved" if alert.resolved else "firing",
        "starts_at": _rfc3339(alert.since_s),
        **alert_json(alert),
    }


def alertmanager_body(alert: Alert, now_s: float) -> list[JsonObject]:
    """The alert as Alertmanager's API v2 takes it: an active one ends by itself unless it is told again."""
    labels = {"alertname": f"loadwise_{alert.name}", "severity": alert.severity, "service": "loadwise"}
    if alert.subject:
        labels["subject"] = alert.subject
    ends_s = now_s if alert.resolved else now_s + 4 * REPEAT_S
    annotations = {"summary": alert.summary, "remedy": alert.remedy, "undo": alert.undo}
    shown = {f"evidence_{name}": str(value) for name, value in alert.evidence.items()}
    return [
        {
            "labels": labels,
            "annotations": {**annotations, **shown},
            "startsAt": _rfc3339(min(alert.since_s, ends_s)),
            "endsAt": _rfc3339(ends_s),
        }
    ]


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
