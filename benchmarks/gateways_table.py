"""The table of gateways in docs/benchmarks.md, made of the saved results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/gateways.json"
PAGE = ROOT / "docs/benchmarks.md"
BEGIN, END = "<!-- gateways: begin -->\n", "<!-- gateways: end -->\n"
HEAD = (
    "| gateway | version | 1 connection: added p50, ms | added p99, ms | requests/s "
    "| 32 connections: added p50, ms | added p99, ms | requests/s |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


def table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table; the upstream's own figures stand in its first line."""
    lines = [_line(name, figures) for name, figures in results["gateways"].items()]
    lines += [f"| {name} | | {reason} | | | | | |\n" for name, reason in results["not_run"].items()]
    return HEAD + "".join(lines)


def _line(name: str, figures: Mapping[str, Any]) -> str:
    cells = [cell for key in ("one", "many") for cell in _cells(name, figures[key])]
    return f"| {name} | {figures['version']} | {' | '.join(cells)} |\n"


def _cells(name: str, figures: Mapping[str, float]) -> list[str]:
    if name == "upstream":
        times = [f"(itself {figures[key]:.3f})" for key in ("p50_ms", "p99_ms")]
    else:
        times = [f"{figures[key]:.3f}" for key in ("added_p50_ms", "added_p99_ms")]
    return [*times, f"{figures['requests_per_s']:,.0f}"]


def document(results: Mapping[str, Any]) -> None:
    """The page holds this table between its two marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + table(results) + END + after, encoding="utf-8")
