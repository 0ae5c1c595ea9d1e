"""`loadwise status`: live in a terminal, once and plain elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from loadwise.cli.client import DEFAULT_URL, AdminKey, ApiKey, Url, fetch, fetch_text, stream
from loadwise.cli.live import screen
from loadwise.cli.printing import JsonFlag
from loadwise.errors import LoadwiseError

Once = Annotated[bool, typer.Option("--once", help="Print it once as text, also in a terminal.")]
RETRY_S = 2.0


def status(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    admin_key: AdminKey = None,
    as_json: JsonFlag = False,
    once: Once = False,
) -> None:
    """Show what a running server measures, decides and changed; Ctrl+C ends it."""
    if as_json:
        typer.echo(json.dumps(fetch(url, "/v1/optimization/status", admin_key, api_key), indent=2))
        return
    console = Console()
    if once or not console.is_terminal:
        typer.echo(fetch_text(url, "/v1/optimization/status?format=text", admin_key, api_key), nl=False)
        return
    _follow(url, console, admin_key, api_key)


def _follow(url: str, console: Console, admin_key: str | None, api_key: str | None) -> None:
    """Draws every frame until the reader ends it; a server that went is waited for."""
    frames = _frames(url, admin_key, api_key)
    first = next(frames, None)
    if first is None:
        raise LoadwiseError(f"{url} ended the connection before it said anything.")
    with Live(screen(first, url), console=console, screen=True, auto_refresh=False) as live:
        try:
            for frame in frames:
                live.update(screen(frame, url), refresh=True)
            while True:
                _wait_again(live, url, admin_key, api_key)
        except KeyboardInterrupt:
            return


def _wait_again(live: Live, url: str, admin_key: str | None, api_key: str | None) -> None:
    try:
        for frame in _frames(url, admin_key, api_key):
            live.update(screen(frame, url), refresh=True)
    except LoadwiseError as error:
        live.update(f"{error}\nTrying again every {RETRY_S:g} s.", refresh=True)
    time.sleep(RETRY_S)


def _frames(url: str, admin_key: str | None, api_key: str | None) -> Iterator[dict[str, Any]]:
    name = ""
    for line in stream(url, "/v1/optimization/events", admin_key, api_key):
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: ") and name == "frame":
            yield json.loads(line.removeprefix("data: "))
