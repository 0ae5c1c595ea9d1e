"""`loadwise config`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from loadwise.cli.printing import JsonFlag, leaves, print_values


def show_config(
    explain: Annotated[str | None, typer.Option(help="A setting's name.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another file: only what --config would change of it.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="production or performance.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the settings in force, explain one of them, or compare two files; a wrong one is refused."""
    from loadwise.settings import explain_setting, load_settings

    if explain is not None:
        print_values(explain_setting(explain), explain, as_json)
        return
    shown = load_settings(config, preset=preset).model_dump(mode="json")
    if against is None:
        print_values(shown, "settings", as_json)
        return
    before = load_settings(against, preset=preset).model_dump(mode="json")
    print_values(difference(before, shown), f"changes of {against}", as_json)


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """The leaves that differ, by dotted name, each as `old -> new`; a leaf that is not there is absent."""
    old, new = dict(leaves(before)), dict(leaves(after))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return {name: f"{old.get(name, 'absent')} -> {new.get(name, 'absent')}" for name in names}
