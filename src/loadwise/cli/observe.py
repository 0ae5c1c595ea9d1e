"""`loadwise observe`."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from loadwise.cli.printing import JsonFlag
from loadwise.cli.serve import pairs

if TYPE_CHECKING:
    from loadwise.app.observe import Observer

COLUMNS = {
    "state": "state",
    "load_score": "load",
    "mean_load_score": "mean",
    "above_knee_s": "above knee, s",
    "running_requests": "running",
    "waiting_requests": "waiting",
    "output_tokens_per_s": "tokens/s",
    "reading_age_s": "age, s",
}


def _cell(value: Any) -> str:
    if value is None:
        return "not said"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(observer: Observer) -> Table:
    found = observer.report()
    would = found["would_have_done"]["strategy"] or "nothing yet"
    table = Table(title=f"{found['observed_s']:.0f} s; the optimizer's strategy would be: {would}")
    table.add_column("replica")
    for title in COLUMNS.values():
        table.add_column(title)
    for name, replica in found["replicas"].items():
        table.add_row(name, *(_cell(replica[column]) for column in COLUMNS))
    return table


def _told(observer: Observer, console: Console) -> None:
    """The end of the observation, for people."""
    found = observer.report()
    for name, replica in found["replicas"].items():
        if replica["error"]:
            console.print(f"{name} {replica['error']}")
    would = found["would_have_done"]
    seconds = ", ".join(f"{name} {spent:.0f} s" for name, spent in would["strategy_seconds"].items())
    console.print(f"\nThe optimizer would have run: {seconds or 'nothing, for nothing could be read'}.")
    for move in would["moved_load"]:
        console.print(
            f"It would have moved load from {move['from']} to {move['to']} for {move['seconds']:.0f} s."
        )
    console.print("\nWhat metrics alone cannot tell:")
    for sentence in found["metrics_cannot_tell"]:
        console.print(f"- {sentence}")


def observe(
    upstream: Annotated[
        list[str], typer.Option(help="NAME=URL of a server whose /metrics are read; may be repeated.")
    ],
    duration: Annotated[
        float | None, typer.Option(min=1.0, help="Seconds to observe; without it until Ctrl-C.")
    ] = None,
    interval: Annotated[float, typer.Option(min=1.0, help="Seconds between two looks, at least 1.")] = 1.0,
    as_json: JsonFlag = False,
) -> None:
    """Watch servers by their metrics alone, and say what loadwise would have done. Sends no request."""
    from loadwise.app.observe import MetricsPage, Observer
    from loadwise.app.observe import observe as follow
    from loadwise.clock import SystemClock
    from loadwise.settings import OptimizationConfig

    clock, console = SystemClock(), Console()
    pages = [MetricsPage(name, url, clock) for name, url in pairs(upstream, "--upstream", "URL").items()]
    observer = Observer(
        {page.name: None for page in pages}, OptimizationConfig().policy(), clock.monotonic_s()
    )
    live = nullcontext() if as_json or not console.is_terminal else Live(console=console)
    with live as shown, suppress(KeyboardInterrupt):
        update = (lambda seen: shown.update(_table(seen))) if isinstance(shown, Live) else (lambda seen: None)
        asyncio.run(follow(pages, observer, clock, duration_s=duration, every_s=interval, shown=update))
    if as_json:
        typer.echo(json.dumps(observer.report(), indent=2))
        return
    if not console.is_terminal:
        console.print(_table(observer))
    _told(observer, console)
