"""`loadwise report`: HTML to pass on, Markdown to read, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from loadwise.cli.client import DEFAULT_URL, AdminKey, ApiKey, Url, fetch
from loadwise.cli.journal import Where
from loadwise.cli.journal import what_if as show_what_if
from loadwise.cli.printing import JsonFlag
from loadwise.errors import ConfigurationError
from loadwise.telemetry.report import markdown
from loadwise.telemetry.report_page import page


class Format(StrEnum):
    """What the report is written as."""

    MARKDOWN = "markdown"
    HTML = "html"
    JSON = "json"


_WRITERS: dict[Format, Callable[[dict[str, Any]], str]] = {
    Format.MARKDOWN: markdown,
    Format.HTML: page,
    Format.JSON: lambda report: json.dumps(report, indent=2) + "\n",
}


def report(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    admin_key: AdminKey = None,
    output: Annotated[
        Format | None, typer.Option("--format", help="Markdown unless --out says otherwise.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write it to this file; .html, .md or .json.")] = None,
    as_json: JsonFlag = False,
    what_if: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of other settings: estimate from the journal what they would have earned."
        ),
    ] = None,
    journal: Where = None,
) -> None:
    """Write the performance report: grade, objectives, measured gain, trends, members, advice."""
    if what_if is not None:
        show_what_if(what_if, journal, as_json)
        return
    wanted = Format.JSON if as_json else output or _format_of(out)
    text = _WRITERS[wanted](fetch(url, "/v1/optimization/report", admin_key, api_key))
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"Cannot write {out}: {error.strerror or error}.", field="--out") from None
    typer.echo(f"Wrote {out}")


def _format_of(out: Path | None) -> Format:
    """The format that a file's name asks for; Markdown for any other."""
    suffixes = {".html": Format.HTML, ".htm": Format.HTML, ".json": Format.JSON}
    return Format.MARKDOWN if out is None else suffixes.get(out.suffix.lower(), Format.MARKDOWN)
