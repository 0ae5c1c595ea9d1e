"""Values as JSON for programs, as tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def print_values(values: Any, title: str, as_json: bool) -> None:
    """The values are printed, as JSON or as a two-column table with one row per leaf."""
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    table = Table(title=title, show_header=False)
    for name, value in leaves(values):
        table.add_row(name, value)
    Console().print(table)


def leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every leaf's dotted name, and its value as text."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += leaves(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)))
    return rows
