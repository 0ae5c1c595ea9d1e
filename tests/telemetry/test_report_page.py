"""The HTML report: whole, drawn without scripts, and deaf to what names and reasons would do."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.telemetry import plots, report, report_page

POINTS = [
    {"time": f"2026-01-01T00:{n:02}:00Z", "load": n / 60, "first_p95": 0.2, "first_p50": 0.1, "rps": 3.0,
     "within": None if n == 30 else 0.9}
    for n in range(60)
]  # fmt: skip
FULL = {
    "generated": "2026-01-01T00:00:00Z",
    "grade": "B",
    "total_requests": 100,
    "success_rate": 0.99,
    "avg_latency_ms": 123.4,
    "within_objectives_fraction": 0.91,
    "objectives": {"time_to_first_token_s": 0.4},
    "thresholds": {"high": 0.8, "low": 0.3},
    "improvement": {"value": 0.12, "low": 0.05, "high": 0.19, "optimised_fraction": 0.9},
    "trend": {"step_s": 60, "points": POINTS},
    "advice": [{"setting": "max_ensemble_size", "change": "Raise it", "evidence": "60 % met"}],
    "alerts": [{"name": "n", "severity": "page", "summary": "It burns.", "remedy": "Add capacity."}],
    "changes": [{"time": "t", "what": "strategy a → b", "reason": "load", "undo": "curl"}],
    "ensemble": {"models": [{"model_id": "large", "health": "healthy"}]},
    "compilation_stats": {"large": {"builds": {"default": {"state": "failed", "cause": "no compiler"}}}},
}


class Tags(HTMLParser):
    """Which elements and attributes a page has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}


PLAIN = Tags(report_page.page(FULL))


def test_the_report_has_grade_gain_trends_advice_members_builds_and_alerts() -> None:
    page = report_page.page(FULL)
    for said in ("<b>B</b>", "+12.0 points", "+5.0 to +19.0", "max_ensemble_size", "60 % met", "large",
                 "no compiler", "It burns.", "Add capacity.", "strategy a → b"):  # fmt: skip
        assert said in page
    assert page.count("<svg") == 5


def test_a_change_that_no_command_undoes_says_why_none_need() -> None:
    rests = {
        "time": "t",
        "what": "build of large: failed",
        "reason": "g++",
        "undo": None,
        "rests": "it rests",
    }
    text = report.markdown({**FULL, "changes": [*FULL["changes"], rests]})
    assert "| t | build of large: failed | g++ | it rests |" in text
    assert "| t | strategy a → b | load | curl |" in text


def test_the_report_runs_nothing_and_loads_nothing() -> None:
    assert not PLAIN.elements & {"script", "iframe", "object", "embed", "link", "img", "base", "form"}
    assert not {
        name for name in PLAIN.attributes if name.startswith("on") or name in ("src", "href", "style")
    }
    assert "url(" not in report_page.STYLE
    assert "@import" not in report_page.STYLE


def test_no_text_becomes_markup(xss: tuple[str, ...]) -> None:
    for evil in xss:
        found = Tags(report_page.page(_everywhere(FULL, evil)))
        assert found.elements <= PLAIN.elements
        assert found.attributes <= PLAIN.attributes


def _everywhere(value: object, evil: str) -> object:
    """The same shape with every text, and every key of free names, replaced; times stay times."""
    if isinstance(value, dict):
        return {
            key: item if key in ("time", "points") else _everywhere(item, evil)
            for key, item in [*value.items(), *([(evil, evil)] if "model_id" in value else [])]
        }
    if isinstance(value, list):
        return [_everywhere(item, evil) for item in value]
    return evil if isinstance(value, str) else value


def test_markdown_cells_cannot_break_their_row(xss: tuple[str, ...]) -> None:
    rows = len(report.markdown(FULL).splitlines())
    for evil in xss:
        text = report.markdown(_everywhere(FULL, evil + "\n| x |"))
        assert len(text.splitlines()) == rows
        assert "<" not in text


def test_an_empty_report_says_that_nothing_was_measured() -> None:
    page = report_page.page({"generated": "now", "grade": None, "improvement": None})
    assert "Not enough evidence yet." in page
    assert "not measured" in page
    assert "<svg" not in page


@given(st.lists(st.none() | st.floats(allow_nan=True, allow_infinity=True), max_size=40))
def test_a_plot_draws_what_is_finite_and_stays_in_its_frame(values: list[float | None]) -> None:
    drawn = plots.over_time("t", ["00:00"] * len(values), [plots.Line(name="x", values=values)])
    assert "nan" not in drawn
    assert "inf" not in drawn


@pytest.mark.parametrize("value", [5e-324, 1.7e308])
def test_the_smallest_and_the_largest_number_have_a_scale(value: float) -> None:
    drawn = plots.over_time("t", ["00:00"], [plots.Line(name="x", values=[value])])
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_a_gap_parts_a_line() -> None:
    drawn = plots.over_time("t", ["0"] * 5, [plots.Line(name="x", values=[1, 2, None, 2, 1])])
    assert drawn.count("M") == 2


@pytest.mark.parametrize(("value", "top"), [(0.0, 1.0), (0.3, 0.5), (1.0, 1.0), (1.1, 2.0), (480.0, 500.0)])
def test_scales_end_on_a_round_figure(value: float, top: float) -> None:
    assert plots.nice(value) == top
