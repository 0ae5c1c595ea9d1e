"""`loadwise`: every command, and what becomes of errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from loadwise.cli.compile import compile_model
from loadwise.cli.config import show_config
from loadwise.cli.journal import explain, replay
from loadwise.cli.observe import observe
from loadwise.cli.report import report
from loadwise.cli.serve import serve
from loadwise.cli.status import status
from loadwise.errors import LoadwiseError

app = typer.Typer(
    name="loadwise",
    help="Keeps an LLM server fast and good while its load changes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(status)
app.command()(report)
app.command()(observe)
app.command("compile")(compile_model)
app.command()(replay)
app.command()(explain)
app.command("config")(show_config)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(installed("loadwise"))


def run(command: Callable[[], Any]) -> int:
    """Runs a command; loadwise's own errors become one line and exit code 2, never a traceback."""
    try:
        command()
    except LoadwiseError as error:
        typer.echo(f"loadwise: {error}", err=True)
        return 2
    return 0


def main() -> None:
    """The entry point of `loadwise`."""
    from loadwise.bench.command import bench_app

    app.add_typer(bench_app, name="bench")
    sys.exit(run(app))
