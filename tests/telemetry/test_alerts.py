"""Alerts: once at the beginning, once at the end, never for a moment's condition."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.grading import Condition, Severity
from loadwise.ports import Alert
from loadwise.telemetry.alerts import AlertBook, LogSink
from loadwise.testing.logs import events

SLOW = Condition(
    name="latency",
    severity=Severity.WARNING,
    value=900.0,
    limit=500.0,
    message="Answers are slow.",
    remedy="Add a replica.",
)


class Recorder:
    def __init__(self) -> None:
        self.heard: list[Alert] = []

    def deliver(self, alert: Alert) -> None:
        self.heard.append(alert)


class Broken:
    def deliver(self, alert: Alert) -> None:
        raise ConnectionError("nobody listens")


def test_a_condition_of_one_moment_is_no_alert() -> None:
    recorder = Recorder()
    book = AlertBook([recorder])
    book.update([SLOW], 0.0)
    book.update([], 1.0)
    book.update([SLOW], 2.0)
    assert recorder.heard == []
    assert book.active() == []


def test_a_lasting_condition_is_told_once_and_its_end_once() -> None:
    recorder = Recorder()
    book = AlertBook([recorder])
    for second in range(10):
        book.update([SLOW], float(second))
    assert [alert.name for alert in book.active()] == ["latency"]
    assert book.active()[0].since_s == 0.0
    for second in range(10, 20):
        book.update([], float(second))
    assert [(alert.name, alert.resolved) for alert in recorder.heard] == [
        ("latency", False),
        ("latency", True),
    ]
    assert book.as_json() == []


def test_an_alert_does_not_flicker_when_its_condition_does() -> None:
    recorder = Recorder()
    book = AlertBook([recorder])
    book.update([SLOW], 0.0)
    for second in range(1, 40):
        book.update([SLOW] if second % 2 else [], float(second))
    assert len(recorder.heard) <= 1


def test_a_sink_that_fails_does_not_silence_the_others(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    book = AlertBook([Broken(), recorder], begin_after=1)
    book.update([SLOW], 0.0)
    assert len(recorder.heard) == 1
    assert events(caplog.records)[0]["event"] == "alert_sink_failed"


def test_the_log_has_evidence_and_remedy(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    book = AlertBook([LogSink()], begin_after=1, end_after=1)
    book.update([SLOW], 0.0)
    book.update([], 1.0)
    logs = events(caplog.records)
    assert [(line["event"], line["level"]) for line in logs] == [
        ("alert", "warning"),
        ("alert_resolved", "info"),
    ]
    assert logs[0]["value"] == 900
    assert logs[0]["remedy"] == "Add a replica."


@given(st.lists(st.booleans(), max_size=60))
def test_beginnings_and_ends_alternate(holds: list[bool]) -> None:
    recorder = Recorder()
    book = AlertBook([recorder])
    for second, held in enumerate(holds):
        book.update([SLOW] if held else [], float(second))
    assert [alert.resolved for alert in recorder.heard] == [
        bool(place % 2) for place in range(len(recorder.heard))
    ]
