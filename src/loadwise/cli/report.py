"""`loadwise report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loadwise.cli.client import DEFAULT_URL, AdminKey, Url, fetch
from loadwise.cli.journal import Where
from loadwise.cli.journal import what_if as show_what_if
from loadwise.cli.printing import JsonFlag, print_values


def report(
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
    as_json: JsonFlag = False,
    what_if: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of other settings: estimate from the journal what they would have earned."
        ),
    ] = None,
    journal: Where = None,
) -> None:
    """Show the performance report: grade, objectives, recommendations."""
    if what_if is not None:
        show_what_if(what_if, journal, as_json)
        return
    values = fetch(url, "/v1/optimization/report", admin_key)
    if not as_json:
        values = {name: value for name, value in values.items() if name != "performance_history"}
    print_values(values, f"report of {url}", as_json)
