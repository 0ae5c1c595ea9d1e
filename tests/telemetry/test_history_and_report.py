"""Histories stay within their size; the report is whole and escaped."""

from __future__ import annotations

from loadwise.telemetry import report, report_page
from loadwise.telemetry.history import History

REPORT = {
    "generated": "2026-01-01T00:00:00Z",
    "grade": "A",
    "performance_improvement": None,
    "recommendations": ["Raise max_ensemble_size."],
    "objectives": {"time_to_first_token_s": 1.0},
    "ensemble": {"models": [{"model_id": "<script>alert(1)</script>", "quality": None, "error_rate": 0.0}]},
    "alerts": [],
    "performance_history": [{"model": f"m|{n}", "latency_ms": 1.5} for n in range(80)],
}


def test_a_history_forgets_its_oldest_entries() -> None:
    history: History[int] = History(3)
    for number in range(5):
        history.add(number)
    assert history.entries() == [2, 3, 4]
    assert len(history) == 3


def test_a_smaller_size_keeps_the_newest_entries() -> None:
    history: History[int] = History(5)
    for number in range(5):
        history.add(number)
    history.resize(2, enabled=True)
    assert list(history) == [3, 4]


def test_a_history_keeps_what_it_packs_and_gives_what_it_was_given() -> None:
    history: History[int] = History(3, pack=lambda number: str(number), unpack=int)
    for number in range(5):
        history.add(number)
    assert history.entries() == list(history) == [2, 3, 4]
    assert list(reversed(history)) == [4, 3, 2]


def test_a_history_that_is_off_keeps_nothing_and_says_null() -> None:
    history: History[int] = History(5, enabled=False)
    history.add(1)
    assert history.entries() is None
    history.resize(5, enabled=True)
    history.add(2)
    assert history.entries() == [2]
    history.resize(5, enabled=False)
    assert len(history) == 0


def test_markdown_says_what_was_not_measured() -> None:
    text = report.markdown(REPORT)
    assert "- performance_improvement: not measured" in text
    assert "- Raise max_ensemble_size." in text
    assert "m\\|79" in text
    assert "m\\|29" not in text


def test_the_page_escapes_what_came_from_outside() -> None:
    page = report_page.page(REPORT)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_report_without_history_says_so() -> None:
    text = report.markdown({**REPORT, "performance_history": None, "recommendations": []})
    assert "## Newest 50 requests\n\nNot measured." in text
    assert "Not measured" in report_page.page({**REPORT, "performance_history": None})


def test_values_are_shown_for_people() -> None:
    values = [None, True, 0.123456, float("nan"), {"a": 1}, [], ["x", None], 3]
    assert [report.shown(value) for value in values] == [
        "not measured", "yes", "0.1235", "not measured", "a 1", "none", "x, not measured", "3",
    ]  # fmt: skip
