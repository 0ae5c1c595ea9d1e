"""The performance report as Markdown, and its parts in the order in which they are read."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from loadwise.ports import JsonObject

# Newest rows of the history that the text shows; the JSON has all of them.
HISTORY_ROWS = 50
ABSENT = "not measured"
# Title, where its rows are in the report, and the columns that people read.
TABLES: Final = (
    ("What to change", "advice", ("change", "setting", "evidence")),
    ("Objectives met", "objectives_met", ("route", "objective", "met", "requests")),
    (
        "Members",
        "ensemble",
        (
            "model_id",
            "health",
            "quality",
            "weight",
            "outcomes",
            "error_rate",
            "avg_latency_ms",
            "time_per_output_token_ms",
            "within_objectives_fraction",
            "engine",
        ),
    ),
    ("Alerts", "alerts", ("severity", "name", "summary", "remedy")),
    ("What loadwise changed", "changes", ("time", "what", "reason", "undo")),
)
BUILD_COLUMNS: Final = ("state", "cause", "remedy", "build_time_s", "speedup")


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
    """One line of text without markup: readers of Markdown let HTML and links through."""
    text = html.escape(" ".join(shown(value).splitlines()), quote=False)
    return text.replace("|", "\\|").replace("[", "\\[").replace("`", "\\`")


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for row in rows]


def sections(report: JsonObject) -> list[tuple[str, Any]]:
    """The report's parts in reading order: a mapping, a list of rows or a list of sentences each."""
    scalars = {name: value for name, value in report.items() if not isinstance(value, Mapping | list)}
    parts: list[tuple[str, Any]] = [("Summary", scalars)]
    parts.append(("Recommendations", report.get("recommendations") or ["None."]))
    parts += _measured(report)
    found = {**report, "changes": [_undone(row) for row in report.get("changes") or ()]}
    parts += [(title, _rows(found.get(name), columns)) for title, name, columns in TABLES]
    parts.append(("Builds", _builds(report.get("compilation_stats") or {})))
    history = report.get("performance_history")
    parts.append((f"Newest {HISTORY_ROWS} requests", None if history is None else history[-HISTORY_ROWS:]))
    return parts


def _measured(report: JsonObject) -> list[tuple[str, Any]]:
    names = ("improvement", "objectives", "latency", "load", "strategy")
    return [(name.capitalize(), report[name]) for name in names if isinstance(report.get(name), Mapping)]


def _rows(found: Any, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows' values in these columns; a mapping of the ensemble gives its models."""
    rows = found.get("models") if isinstance(found, Mapping) else found
    return [{name: row.get(name) for name in columns if name in row} for row in rows or []]


def _undone(change: JsonObject) -> JsonObject:
    """The change with how it is undone, or why it need not be."""
    return {**change, "undo": change.get("undo") or change.get("rests")}


def _builds(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"model": model_id, "mode": mode, **{name: build.get(name) for name in BUILD_COLUMNS}}
        for model_id, found in stats.items()
        for mode, build in (found.get("builds") or {}).items()
    ]


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
