"""The performance report as one HTML page: no script, nothing from elsewhere, every value escaped."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

from loadwise.ports import JsonObject
from loadwise.telemetry import plots
from loadwise.telemetry.report import ABSENT, sections, shown

STYLE: Final = files("loadwise.telemetry").joinpath("report.css").read_text(encoding="utf-8")


# Parts that this page draws in its own way.
DRAWN: Final = frozenset({"What to change", "Improvement"})


def page(report: JsonObject) -> str:
    """The whole report; what was not measured says so."""
    parts = [_grade(report), _gain(report), _trends(report), _advice(report)]
    parts += [_section(title, _content(rows)) for title, rows in sections(report) if title not in DRAWN]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1"><title>loadwise: performance report</title>'
        f"<style>{STYLE}</style></head><body><header><h1>Performance report</h1>"
        f"<p>{_escaped(report.get('generated'))}, configuration {_escaped(report.get('config_version'))}, "
        f"{_escaped(report.get('system_status'))}</p></header><main>{''.join(parts)}</main></body></html>\n"
    )


def _escaped(value: Any) -> str:
    return html.escape(shown(value))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _percent(value: Any) -> str:
    return ABSENT if value is None else f"{100.0 * value:.1f} %"


def _grade(report: JsonObject) -> str:
    latency = report.get("avg_latency_ms")
    rows = {
        "requests": shown(report.get("total_requests")),
        "succeeded": _percent(report.get("success_rate")),
        "within objectives": _percent(report.get("within_objectives_fraction")),
        "average latency": ABSENT if latency is None else f"{latency:.0f} ms",
    }
    figures = "".join(
        f"<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>" for name, text in rows.items()
    )
    grade = report.get("grade")
    shown_grade = html.escape(str(grade)) if grade is not None else "–"
    return _section("Grade", f'<div class="grade"><b>{shown_grade}</b><dl>{figures}</dl></div>')


def _gain(report: JsonObject) -> str:
    found = report.get("improvement") or {}
    value, low, high = (found.get(name) for name in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return _section("Measured gain", "<p>Not enough evidence yet.</p>")
    said = (
        f"{100 * value:+.1f} points of requests within objectives; 95 % interval {100 * low:+.1f} to "
        f"{100 * high:+.1f}. With optimisation {_percent(found.get('optimised_fraction'))}, without "
        f"{_percent(found.get('unoptimised_fraction'))}."
    )
    return _section("Measured gain", plots.interval(value, low, high) + f"<p>{html.escape(said)}</p>")


def _trends(report: JsonObject) -> str:
    track = report.get("trend") or {}
    points: Sequence[Mapping[str, Any]] = track.get("points") or ()
    labels = [str(point["time"])[11:16] for point in points]
    objectives, thresholds = report.get("objectives") or {}, report.get("thresholds") or {}

    def values(name: str, factor: float = 1.0) -> list[float | None]:
        return [None if point.get(name) is None else factor * point[name] for point in points]

    drawn = [
        plots.over_time(
            "Load score",
            labels,
            [plots.Line(name="load", values=values("load"))],
            limits=[plots.Limit(name=name, value=value) for name, value in thresholds.items()],
            top=1.0,
        ),
        plots.over_time(
            "Time to first token",
            labels,
            [
                plots.Line(name="p95", values=values("first_p95", 1000.0)),
                plots.Line(name="p50", values=values("first_p50", 1000.0), style="b"),
            ],
            limits=[plots.Limit(name="objective", value=1000.0 * objectives["time_to_first_token_s"])]
            if "time_to_first_token_s" in objectives
            else [],
            unit=" ms",
        ),
        plots.over_time("Requests per second", labels, _traffic(values)),
        plots.over_time(
            "Share within objectives", labels, [plots.Line(name="share", values=values("within"))], top=1.0
        ),
    ]
    return _section("Trends", "".join(drawn) or f"<p>{ABSENT.capitalize()}.</p>")


def _traffic(values: Callable[[str], list[float | None]]) -> list[plots.Line]:
    """Requests that engines ended, and those that none got where there were any."""
    refused = values("refused_rps")
    lines = [plots.Line(name="requests", values=values("rps"))]
    return lines + ([plots.Line(name="refused", values=refused, style="b")] if any(refused) else [])


def _advice(report: JsonObject) -> str:
    rows = report.get("advice") or []
    items = "".join(
        f"<li><b>{_escaped(row['change'])} <code>{_escaped(row['setting'])}</code></b>"
        f"{_escaped(row['evidence'])}</li>"
        for row in rows
    )
    body = f'<ul class="advice">{items}</ul>' if items else "<p>Nothing suggests itself.</p>"
    return _section("What to change", body)


def _content(content: Any) -> str:
    if content is None:
        return f"<p>{ABSENT.capitalize()}.</p>"
    if isinstance(content, Mapping):
        rows = (f"<tr><th scope=row>{_escaped(name)}<td>{_escaped(value)}" for name, value in content.items())
        return f"<table>{''.join(rows)}</table>"
    if content and isinstance(content[0], Mapping):
        return _table(content)
    return (
        "<ul>" + "".join(f"<li>{_escaped(sentence)}" for sentence in content) + "</ul>"
        if content
        else "None."
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th scope=col>{_escaped(name)}" for name in columns)
    body = ("<tr>" + "".join(f"<td>{_escaped(row.get(name))}" for name in columns) for row in rows)
    return f"<table><thead><tr>{head}</thead>{''.join(body)}</table>"
