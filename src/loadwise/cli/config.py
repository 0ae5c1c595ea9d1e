"""`loadwise config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loadwise.cli.printing import JsonFlag, print_values


def show_config(
    explain: Annotated[str | None, typer.Option(help="A setting's name.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    preset: Annotated[str | None, typer.Option(help="production or performance.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the settings in force, or explain one of them."""
    from loadwise.settings import explain_setting, load_settings

    if explain is not None:
        print_values(explain_setting(explain), explain, as_json)
        return
    print_values(load_settings(config, preset=preset).model_dump(mode="json"), "settings", as_json)
