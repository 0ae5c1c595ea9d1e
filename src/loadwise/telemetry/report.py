"""The performance report as text: Markdown to read in a terminal, HTML to pass on."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from loadwise.ports import JsonObject

# Newest rows of the history that the text shows; the JSON has all of them.
HISTORY_ROWS = 50
ABSENT = "not measured"


def shown(value: Any) -> str:
    """A value for people: absent values say so, floats have four significant digits."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else ABSENT
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(shown(item) for item in value) or "none"
    return str(value)


def _cell(value: Any) -> str:
    return shown(value).replace("|", "\\|").replace("\n", " ")


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for row in rows]


def sections(report: JsonObject) -> list[tuple[str, Any]]:
    """The report's parts in reading order: a mapping, a list of rows or a list of sentences each."""
    scalars = {name: value for name, value in report.items() if not isinstance(value, Mapping | list)}
    history = report.get("performance_history")
    parts: list[tuple[str, Any]] = [("Summary", scalars)]
    parts.append(("Recommendations", report.get("recommendations") or ["None."]))
    for name in ("improvement", "objectives", "load", "strategy"):
        if isinstance(report.get(name), Mapping):
            parts.append((name.replace("_", " ").capitalize(), report[name]))
    parts.append(("Members", (report.get("ensemble") or {}).get("models") or []))
    parts.append(("Alerts", report.get("alerts") or []))
    parts.append((f"Newest {HISTORY_ROWS} requests", None if history is None else history[-HISTORY_ROWS:]))
    return parts


def markdown(report: JsonObject) -> str:
    """The report as Markdown; everything the JSON has, but only the newest requests."""
    lines = ["# Performance report", ""]
    for title, content in sections(report):
        lines += [f"## {title}", "", *_markdown_part(content), ""]
    return "\n".join(lines)


def _markdown_part(content: Any) -> list[str]:
    if content is None:
        return [f"{ABSENT.capitalize()}."]
    if isinstance(content, Mapping):
        return [f"- {name}: {_cell(value)}" for name, value in content.items()]
    if content and isinstance(content[0], Mapping):
        return _table(content)
    return [f"- {_cell(sentence)}" for sentence in content] or ["None."]


def page(report: JsonObject) -> str:
    """The report as one HTML page without scripts; every value is escaped."""
    body = "".join(f"<h2>{html.escape(title)}</h2>{_html_part(part)}" for title, part in sections(report))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Performance report</title>'
        "<style>body{font:15px/1.5 system-ui;margin:2rem auto;max-width:70rem;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2rem .5rem;text-align:left}"
        f"</style><h1>Performance report</h1>{body}</html>\n"
    )


def _html_part(content: Any) -> str:
    if content is None:
        return f"<p>{ABSENT.capitalize()}.</p>"
    if isinstance(content, Mapping):
        rows = (f"<tr><th>{_escaped(name)}<td>{_escaped(value)}" for name, value in content.items())
        return f"<table>{''.join(rows)}</table>"
    if content and isinstance(content[0], Mapping):
        columns = list(dict.fromkeys(name for row in content for name in row))
        head = "".join(f"<th>{_escaped(name)}" for name in columns)
        rows = ("<tr>" + "".join(f"<td>{_escaped(row.get(name))}" for name in columns) for row in content)
        return f"<table><tr>{head}{''.join(rows)}</table>"
    return "<ul>" + "".join(f"<li>{_escaped(sentence)}" for sentence in content) + "</ul>"


def _escaped(value: Any) -> str:
    return html.escape(shown(value))
