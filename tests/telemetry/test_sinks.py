"""Sinks against a real receiver: down, slow, refusing, redirecting; nothing is lost within the queue."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from loadwise.ports import Alert
from loadwise.telemetry.sinks import QueuedSink, Target, alertmanager_body, webhook_body

PATIENCE_S = 30.0
# Instead of a status: what is answered is no HTTP.
NONSENSE = 0


def alert(number: int = 0, **changes: Any) -> Alert:
    values: dict[str, Any] = {
        "name": f"rule_{number}",
        "severity": "page",
        "summary": "It is slow.",
        "remedy": "Add a replica.",
        "undo": "Stop it.",
        "subject": "fast",
        "evidence": {"value": 1.5, "limit": 1.0},
        "since_s": 1_750_000_000.0,
        **changes,
    }
    return Alert(**values)


class Receiver:
    """An HTTP server that keeps what it is sent; `statuses` are its next answers, then 200."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.statuses: list[int] = []
        self.hold: threading.Event | None = None
        self.arrived = threading.Condition()
        self.asked = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.serve(self)

            def log_message(self, *_: Any) -> None: ...

        self._handler = Handler
        self.server: ThreadingHTTPServer | None = None

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        content = request.rfile.read(int(request.headers["content-length"]))
        with self.arrived:
            self.asked += 1
            self.arrived.notify_all()
        if self.hold is not None:
            self.hold.wait(PATIENCE_S)
        status = self.statuses.pop(0) if self.statuses else 200
        if status == NONSENSE:
            request.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
            request.close_connection = True
            return
        if status == 200:
            self.bodies.append(json.loads(content))
            self.headers.append(dict(request.headers))
        request.send_response(status)
        request.send_header("location", "http://127.0.0.1:9/elsewhere")
        request.send_header("content-length", "0")
        request.end_headers()
        with self.arrived:
            self.arrived.notify_all()

    def start(self, port: int = 0) -> str:
        self.server = ThreadingHTTPServer(("127.0.0.1", port), self._handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/hook"

    def stop(self) -> int:
        assert self.server is not None
        port = self.server.server_port
        self.server.shutdown()
        self.server.server_close()
        return port


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    if made.server is not None:
        made.stop()


@contextmanager
def sink_to(url: str, **options: Any) -> Iterator[tuple[QueuedSink, Counter[str]]]:
    results: Counter[str] = Counter()
    target = Target(name="hook", url=url, headers={"authorization": "Bearer of-the-operator"})
    sink = QueuedSink(target, options.pop("shape", webhook_body), **options)
    sink.on_result = lambda name, result: results.update([result])
    try:
        yield sink, results
    finally:
        sink.close(1.0)


def test_an_alert_arrives_with_evidence_remedy_and_undo(receiver: Receiver) -> None:
    with sink_to(receiver.start()) as (sink, results):
        sink.deliver(alert())
        assert sink.flush(PATIENCE_S)
    (body,) = receiver.bodies
    assert (body["status"], body["name"], body["subject"]) == ("firing", "rule_0", "fast")
    assert body["evidence"] == {"value": 1.5, "limit": 1.0}
    assert (body["remedy"], body["undo"]) == ("Add a replica.", "Stop it.")
    assert body["starts_at"] == "2025-06-15T15:06:40.000Z"
    assert receiver.headers[0]["Authorization"] == "Bearer of-the-operator"
    assert results == {"delivered": 1}


def test_a_receiver_that_is_down_gets_everything_in_order_when_it_is_back(receiver: Receiver) -> None:
    url = receiver.start()
    port = receiver.stop()
    with sink_to(url) as (sink, results):
        for number in range(20):
            sink.deliver(alert(number))
        assert len(sink) == 20
        receiver.start(port)
        assert sink.flush(PATIENCE_S)
    assert [body["name"] for body in receiver.bodies] == [f"rule_{number}" for number in range(20)]
    assert results == {"delivered": 20}


def test_errors_of_the_receiver_are_tried_again(receiver: Receiver) -> None:
    receiver.statuses = [503, 429]
    with sink_to(receiver.start()) as (sink, results):
        sink.deliver(alert())
        assert sink.flush(PATIENCE_S)
    assert receiver.asked == 3
    assert results == {"delivered": 1}


@pytest.mark.parametrize("status", [301, 400, 404])
def test_an_alert_that_is_refused_does_not_hold_up_the_next(
    receiver: Receiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [status]
    with sink_to(receiver.start()) as (sink, results):
        sink.deliver(alert(1))
        sink.deliver(alert(2))
        assert sink.flush(PATIENCE_S)
    assert [body["name"] for body in receiver.bodies] == ["rule_2"]
    assert results == {"refused": 1, "delivered": 1}
    assert "alert_refused" in caplog.text


def test_a_slow_receiver_delays_nobody_and_a_full_queue_is_counted(receiver: Receiver) -> None:
    receiver.hold = threading.Event()
    with sink_to(receiver.start(), size=5) as (sink, results):
        for number in range(9):
            # Returns although nothing was delivered yet: this would never end otherwise.
            sink.deliver(alert(number))
        assert results == {"dropped": 4}
        receiver.hold.set()
        assert sink.flush(PATIENCE_S)
    assert len(receiver.bodies) == 5
    assert results == {"dropped": 4, "delivered": 5}


def test_an_active_alert_is_told_again_and_a_resolved_one_is_not(receiver: Receiver) -> None:
    with sink_to(receiver.start(), repeat_s=0.05) as (sink, _):
        sink.deliver(alert())
        with receiver.arrived:
            assert receiver.arrived.wait_for(lambda: len(receiver.bodies) >= 3, PATIENCE_S)
        sink.deliver(alert(resolved=True))
        assert sink.flush(PATIENCE_S)
        with receiver.arrived:
            receiver.arrived.wait_for(lambda: receiver.bodies[-1]["status"] == "resolved", PATIENCE_S)
            told = len(receiver.bodies)
            assert not receiver.arrived.wait_for(lambda: len(receiver.bodies) > told, 0.3)


def test_alertmanager_is_told_in_its_own_words() -> None:
    (body,) = alertmanager_body(alert(), 1_750_000_100.0)
    assert body["labels"] == {
        "alertname": "loadwise_rule_0",
        "severity": "page",
        "service": "loadwise",
        "subject": "fast",
    }
    assert body["annotations"]["undo"] == "Stop it."
    assert body["annotations"]["evidence_value"] == "1.5"
    assert body["endsAt"] == "2025-06-15T15:12:20.000Z"
    (ended,) = alertmanager_body(alert(resolved=True), 1_750_000_100.0)
    assert ended["endsAt"] == "2025-06-15T15:08:20.000Z"


def test_an_environment_proxy_is_not_asked(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with sink_to(receiver.start()) as (sink, results):
        sink.deliver(alert())
        assert sink.flush(PATIENCE_S)
    assert results == {"delivered": 1}


def test_a_receiver_that_talks_no_http_is_asked_again(receiver: Receiver) -> None:
    receiver.statuses = [NONSENSE]
    with sink_to(receiver.start()) as (sink, results):
        sink.deliver(alert())
        assert sink.flush(PATIENCE_S)
        assert results == {"delivered": 1}


def test_an_alert_that_cannot_be_written_costs_itself_alone(receiver: Receiver) -> None:
    def shape(given: Alert) -> object:
        return object() if given.name == "rule_0" else webhook_body(given)

    with sink_to(receiver.start(), shape=shape) as (sink, results):
        sink.deliver(alert(0))
        sink.deliver(alert(1))
        assert sink.flush(PATIENCE_S)
        assert results == {"refused": 1, "delivered": 1}
