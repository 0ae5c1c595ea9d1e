"""`loadwise replay`, `loadwise explain` and the journal that they read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loadwise.cli.printing import JsonFlag, print_values

if TYPE_CHECKING:
    from loadwise.telemetry.journal.alternative import Alternative
    from loadwise.telemetry.journal.reader import Reader

Where = Annotated[
    Path | None,
    typer.Option(
        "--journal", help="The journal's file or folder, or a server's state_dir; else the settings'."
    ),
]
# Exit code of a replay that does not reproduce its journal; errors are 2.
DIFFERENT = 1


def replay(
    journal: Annotated[
        Path | None, typer.Argument(help="The journal's file or folder, or a server's state_dir.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of other settings: show what they would decide.")
    ] = None,
    alerts: Annotated[
        bool, typer.Option("--alerts", help="Show the alerts that its time gives cause for.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Decide a journal again: all of it must come out the same (exit code 1 when it does not)."""
    from loadwise.telemetry.journal.alternative import compare
    from loadwise.telemetry.journal.replay import replay as replayed

    if alerts:
        _alarms(journal, config, as_json)
        return
    with opened(journal) as reader:
        if config is not None:
            compared = compare(reader.batches(), alternative(config)).as_json()
            if as_json:
                print_values(compared, "", as_json)
            else:
                _show_comparison(compared)
            return
        found = replayed(reader.batches())
        print_values(found.as_json(), f"replay of {reader.path}", as_json)
    if not found.exact:
        raise typer.Exit(DIFFERENT)


def explain(
    request_id: Annotated[str, typer.Argument(help="The x-request-id of an answer.")],
    journal: Where = None,
    tenant: Annotated[
        str | None, typer.Option(help="Whose request, where several tenants used the id; else the latest.")
    ] = None,
    number: Annotated[
        int | None, typer.Option(min=1, help="Which of those that carried the id, from 1, oldest first.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell one request's story: what was known, who answered and why, how it went."""
    from loadwise.telemetry.journal.explain import explain as explained
    from loadwise.telemetry.journal.story import told

    with opened(journal) as reader:
        story = explained(reader, request_id, tenant=tenant, number=number)
    if as_json:
        print_values(story, "", as_json)
    else:
        typer.echo(told(story))


def opened(journal: Path | None) -> Reader:
    """The journal that is named, or the one that the settings name."""
    from loadwise.settings import load_settings
    from loadwise.telemetry.journal.reader import Reader

    if journal is None:
        settings = load_settings()
        journal = settings.journal.directory or settings.state_dir
    return Reader(journal)


def alternative(config: Path) -> Alternative:
    """The configuration of a file of settings, for comparison."""
    from loadwise.settings import load_settings
    from loadwise.telemetry.journal.alternative import Alternative

    settings = load_settings(config)
    return Alternative(settings.optimization, settings.routes)


def what_if(config: Path, journal: Path | None, as_json: bool) -> None:
    """Prints what another configuration would have earned; see `loadwise report --what-if`."""
    from loadwise.telemetry.journal.whatif import what_if as estimated

    with opened(journal) as reader:
        found = estimated(reader.batches(), alternative(config))
    if as_json:
        print_values(found, "", as_json)
    else:
        _show_estimates(found, config)


def _alarms(journal: Path | None, config: Path | None, as_json: bool) -> None:
    """Prints the alerts of a journal's time, with its own thresholds or those of a file of settings."""
    from loadwise.telemetry.journal.alarms import alarms

    policy = None if config is None else alternative(config).policy
    with opened(journal) as reader:
        found = alarms(reader.batches(), policy, reader.changes()).as_json()
    if as_json:
        print_values(found, "", as_json)
        return
    console = Console()
    console.print(
        f"{found['from']} to {found['to']}: {found['pages']} pages and {found['tickets']} tickets "
        f"at {found['looks']} looks."
    )
    for row in found["alerts"]:
        console.print(f"{row['began']}  {row['severity']:<7} {row['alert']}: {row['summary']}")


def _show_comparison(found: Mapping[str, Any]) -> None:
    total = max(1, found["decisions"])
    console = Console()
    console.print(
        f"{found['decisions']} decisions: {found['same_member'] / total:.1%} with the same member, "
        f"{found['same_tuning'] / total:.1%} tuned alike; {found['dropped']} events lost, "
        f"{found['skipped']} rows skipped."
    )
    shares = Table("member", "share as written", "share under the other", title="Mean shares")
    for name, share in found["shares"].items():
        shares.add_row(name, f"{share['written']:.1%}", f"{share['other']:.1%}")
    console.print(shares)
    for title in ("members", "strategies"):
        table = Table("as written", "under the other", "times", title=f"Differing {title}")
        for row in found[title]:
            table.add_row(row["written"], row["other"], str(row["count"]))
        console.print(table)


def _show_estimates(found: Mapping[str, Any], config: Path) -> None:
    table = Table("figure", "as logged", "inverse propensity", "doubly robust", "effective samples")
    table.title = f"What {config} would have earned (95 % intervals)"
    for name, figure in found["figures"].items():
        cells = [_interval(figure[each]) for each in ("logged", "inverse_propensity", "doubly_robust")]
        table.add_row(name, *cells, f"{figure['effective_samples']:.0f} of {figure['samples']}")
    console = Console()
    console.print(table)
    for name, figure in found["figures"].items():
        for reason in figure["missing"]:
            console.print(f"{name}: not estimated, because {reason}.")
    console.print(found["caveat"])


def _interval(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return "not supported"
    return f"{estimate['value']:.4g} ({estimate['low']:.4g} to {estimate['high']:.4g})"
