"""The command line: serve, status, report, bench, config."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loadwise.errors import ConfigurationError, LoadwiseError

app = typer.Typer(
    name="loadwise",
    help="Keeps an LLM server fast and good while its load changes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Url = Annotated[str, typer.Option(help="The running server.", envvar="LOADWISE_URL")]
AdminKey = Annotated[str | None, typer.Option(help="Admin key of the server.", envvar="LOADWISE_ADMIN_KEY")]
DEFAULT_URL = "http://127.0.0.1:2240"


def _pairs(values: list[str] | None, flag: str, what: str) -> dict[str, str]:
    """NAME=VALUE options as a mapping; refuses empty halves and repeated names."""
    pairs: dict[str, str] = {}
    for value in values or []:
        name, separator, target = value.partition("=")
        if not (separator and name and target):
            raise ConfigurationError(f"{flag} takes NAME={what}, not {value!r}.", field=flag)
        if name in pairs:
            raise ConfigurationError(f"{flag} names {name!r} twice; names must differ.", field=flag)
        pairs[name] = target
    return pairs


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; without keys only loopback.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port; 2240 by default, 0 for any free one.")] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="Serve /v1/optimization and /metrics there instead.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key that clients send as Bearer token.")] = None,
    admin_key: Annotated[str | None, typer.Option(help="Key for changing the optimizer's settings.")] = None,
    preset: Annotated[str | None, typer.Option(help="production or performance.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="NAME=DIR, a model folder to serve here.")] = None,
    model_dir: Annotated[
        Path | None, typer.Option(help="Folder of model folders that may be added later.")
    ] = None,
    upstream: Annotated[list[str] | None, typer.Option(help="NAME=URL, an OpenAI-compatible server.")] = None,
) -> None:
    """Serve an OpenAI-compatible API that adapts to its load."""
    from loadwise.app import run_server
    from loadwise.settings import load_settings

    models = {name: {"path": path} for name, path in _pairs(model, "--model", "DIR").items()}
    upstreams = {name: {"url": url} for name, url in _pairs(upstream, "--upstream", "URL").items()}
    run_server(
        load_settings(
            config,
            host=host,
            port=port,
            admin_port=admin_port,
            api_key=api_key,
            admin_key=admin_key,
            preset=preset,
            model_dir=model_dir,
            models=models or None,
            upstreams=upstreams or None,
        )
    )


def _fetch(url: str, path: str, admin_key: str | None) -> Any:
    """A GET of the control plane, or a `LoadwiseError` that says what to check."""
    from urllib.error import HTTPError, URLError
    from urllib.parse import urlsplit
    from urllib.request import Request, urlopen

    if urlsplit(url).scheme not in {"http", "https"}:
        raise ConfigurationError(f"--url must begin with http:// or https://, not {url!r}.", field="--url")
    headers = {"x-loadwise-admin-key": admin_key} if admin_key else {}
    try:
        # The scheme was checked above.
        with urlopen(Request(url.rstrip("/") + path, headers=headers), timeout=10) as answer:  # noqa: S310
            return json.load(answer)
    except HTTPError as error:
        raise LoadwiseError(f"{url} answered {error.code} {error.reason}; is the admin key right?") from None
    except (URLError, OSError, ValueError) as error:
        raise LoadwiseError(f"Cannot read {url}{path}: {error}. Is 'loadwise serve' running there?") from None


def _show(values: Mapping[str, Any], title: str) -> None:
    """A nested mapping as a two-column table, one row per leaf."""
    table = Table(title=title, show_header=False)
    for name, value in _leaves(values):
        table.add_row(name, value)
    Console().print(table)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _leaves(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)))
    return rows


def _print(values: Any, title: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(values, indent=2))
    else:
        _show(values, title)


@app.command()
def status(url: Url = DEFAULT_URL, admin_key: AdminKey = None, as_json: JsonFlag = False) -> None:
    """Show what a running server measures and decides."""
    _print(_fetch(url, "/v1/optimization/dashboard", admin_key), f"loadwise at {url}", as_json)


@app.command()
def report(url: Url = DEFAULT_URL, admin_key: AdminKey = None, as_json: JsonFlag = False) -> None:
    """Show the performance report: grade, objectives, recommendations."""
    values = _fetch(url, "/v1/optimization/report", admin_key)
    if not as_json:
        values = {name: value for name, value in values.items() if name != "performance_history"}
    _print(values, f"report of {url}", as_json)


@app.command("config")
def show_config(
    explain: Annotated[str | None, typer.Option(help="A setting's name.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    preset: Annotated[str | None, typer.Option(help="production or performance.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the settings in force, or explain one of them."""
    from loadwise.settings import explain_setting, load_settings

    if explain is not None:
        _print(explain_setting(explain), explain, as_json)
        return
    _print(load_settings(config, preset=preset).model_dump(mode="json"), "settings", as_json)


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
