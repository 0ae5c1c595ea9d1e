"""Alerts: once at the beginning, once at the end, never for a moment's condition."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.alert_facts import Condition, Severity
from loadwise.ports import Alert
from loadwise.telemetry.alerts import AlertBook, LogSink
from loadwise.testing.logs import events

SLOW = Condition(
    name="latency",
    severity=Severity.TICKET,
    value=900.0,
    limit=500.0,
    message="Answers are slow.",
    remedy="Add a replica.",
    undo="Stop it.",
    for_s=2.0,
    clear_s=3.0,
)
AT_ONCE = replace(SLOW, for_s=0.0, clear_s=0.0)
WALL = 1_750_000_000.0


class Recorder:
    def __init__(self) -> None:
        self.heard: list[Alert] = []

    def deliver(self, alert: Alert) -> None:
        self.heard.append(alert)


class Broken:
    def deliver(self, alert: Alert) -> None:
        raise ConnectionError("nobody listens")


def look(book: AlertBook, now_s: float, *conditions: Condition) -> None:
    book.update(conditions, now_s, WALL + now_s)


def test_a_condition_of_one_moment_is_no_alert() -> None:
    recorder = Recorder()
    book = AlertBook([recorder])
    look(book, 0.0, SLOW)
    look(book, 1.0)
    look(book, 2.0, SLOW)
    look(book, 3.0, SLOW)
    assert recorder.heard == []
    assert book.active() == []


def test_a_lasting_condition_is_told_once_and_its_end_once() -> None:
    recorder = Recorder()
    book = AlertBook([recorder])
    for second in range(10):
        look(book, float(second), SLOW)
    (active,) = book.active()
    assert (active.name, active.since_s, active.undo) == ("latency", WALL, "Stop it.")
    for second in range(10, 20):
        look(book, float(second))
    assert [(alert.name, alert.resolved) for alert in recorder.heard] == [
        ("latency", False),
        ("latency", True),
    ]
    assert book.as_json() == []


def test_an_alert_does_not_flicker_when_its_condition_does() -> None:
    recorder = Recorder()
    book = AlertBook([recorder])
    for second in range(4):
        look(book, float(second), SLOW)
    for second in range(4, 40):
        look(book, float(second), *([SLOW] if second % 2 else []))
    assert len(recorder.heard) == 1


def test_subjects_have_alerts_of_their_own() -> None:
    recorder = Recorder()
    book = AlertBook([recorder])
    eu, us = replace(AT_ONCE, subject="eu"), replace(AT_ONCE, subject="us")
    look(book, 0.0, eu, us)
    look(book, 1.0, us)
    look(book, 2.0, us)
    assert [(alert.subject, alert.resolved) for alert in recorder.heard] == [
        ("eu", False),
        ("us", False),
        ("eu", True),
    ]
    assert book.holding() == {("latency", "us")}


def test_the_newest_evidence_is_shown() -> None:
    book = AlertBook()
    look(book, 0.0, AT_ONCE)
    look(book, 1.0, replace(AT_ONCE, value=1200.0, evidence={"member": "fast"}))
    (shown,) = book.as_json()
    assert shown["evidence"] == {"value": 1200.0, "limit": 500.0, "member": "fast"}


def test_a_sink_that_fails_does_not_silence_the_others(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    book = AlertBook([Broken(), recorder])
    look(book, 0.0, AT_ONCE)
    assert len(recorder.heard) == 1
    assert events(caplog.records)[0]["event"] == "alert_sink_failed"


def test_the_log_has_evidence_remedy_and_undo(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    book = AlertBook([LogSink()])
    look(book, 0.0, AT_ONCE)
    look(book, 1.0)
    logs = events(caplog.records)
    assert [(line["event"], line["level"]) for line in logs] == [
        ("alert", "warning"),
        ("alert_resolved", "info"),
    ]
    assert logs[0]["evidence"]["value"] == 900
    assert (logs[0]["remedy"], logs[0]["undo"]) == ("Add a replica.", "Stop it.")


@given(st.lists(st.booleans(), max_size=60))
def test_beginnings_and_ends_alternate(holds: list[bool]) -> None:
    recorder = Recorder()
    book = AlertBook([recorder])
    for second, held in enumerate(holds):
        look(book, float(second), *([SLOW] if held else []))
    assert [alert.resolved for alert in recorder.heard] == [
        bool(place % 2) for place in range(len(recorder.heard))
    ]
