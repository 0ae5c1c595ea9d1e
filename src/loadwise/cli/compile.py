"""`loadwise compile`."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from loadwise.cli.printing import JsonFlag
from loadwise.errors import ConfigurationError
from loadwise.settings import Settings, load_settings

_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
KeyFile = Annotated[Path | None, typer.Option("--key", help="File with the operator's key for packages.")]


def compile_model(
    model: Annotated[str | None, typer.Argument(help="Model folder, or the name of a shipped model.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Backend to try; all by default.")] = None,
    budget: Annotated[str, typer.Option(help="No form is begun after this: 90s, 10m, 1h.")] = "10m",
    runs: Annotated[int, typer.Option(min=1, max=100, help="Measurements of each form, in turns.")] = 5,
    export_to: Annotated[Path | None, typer.Option("--export", help="Write kept packages to a file.")] = None,
    import_from: Annotated[Path | None, typer.Option("--import", help="Keep the packages of a file.")] = None,
    key: KeyFile = None,
    prompts: Annotated[Path | None, typer.Option(help="Your prompts to hold forms against.")] = None,
    device: Annotated[str, typer.Option(help="Where torch runs it: cpu, cuda or cuda:0.")] = "cpu",
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make every form of a model that can serve here, and say which is the fastest that is right."""
    settings = load_settings(config, **({} if prompts is None else {"build_prompts": prompts}))
    if export_to is not None or import_from is not None:
        _say(_transfer(settings, export_to, import_from, key), as_json)
        return
    if model is None:
        raise ConfigurationError("Name a model folder, --export or --import.", field="MODEL")
    result = _measured(folder_of(model), settings, backend or ["all"], seconds(budget), runs, device)
    _say(result, as_json)


def seconds(text: str) -> float:
    """A length of time as people write it: 90, 90s, 10m, 1h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if found is None or float(found[1]) <= 0:
        raise ConfigurationError(
            f"--budget takes a time such as 90s, 10m or 1h, not {text!r}.", field="--budget"
        )
    return float(found[1]) * _UNITS_S[found[2]]


def folder_of(model: str) -> Path:
    """The folder itself, or that of a shipped model."""
    path = Path(model)
    if not path.is_dir():
        try:
            from loadwise_models import family
        except ImportError:
            return path
        shipped: dict[str, Path] = family()
        return shipped.get(model, path)
    return path


def _measured(
    folder: Path, settings: Settings, backends: list[str], budget_s: float, runs: int, device: str
) -> dict[str, Any]:
    from loadwise.app.compiling.session import Session
    from loadwise.clock import SystemClock

    with _progress() as say:
        session = Session(folder, settings, SystemClock(), say, budget_s, device)
        return asyncio.run(session.run(backends, runs))


@contextmanager
def _progress() -> Iterator[Any]:
    """A line that says what is being done; on standard error, so that JSON stays JSON."""
    console = Console(stderr=True)
    with console.status("Starting") as status:
        # What is not a terminal has no width to break lines at.
        yield status.update if console.is_terminal else partial(console.print, soft_wrap=True)


def _transfer(
    settings: Settings, export_to: Path | None, import_from: Path | None, key: Path | None
) -> dict[str, Any]:
    from loadwise.compiler.store import PackageStore
    from loadwise.compiler.store.transfer import export_packages, import_packages, operator_key

    if key is None:
        raise ConfigurationError("--export and --import need --key FILE.", field="--key")
    store = PackageStore(settings.cache_dir / "builds", settings.optimization.build_store_bytes)
    secret = operator_key(key)
    done: dict[str, Any] = {}
    if import_from is not None:
        done["imported"] = import_packages(store, import_from, secret)
    if export_to is not None:
        done["exported"] = export_packages(store, export_to, secret)
    return {**done, "problem": store.problem or None}


def _say(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    elif "rows" in result:
        from loadwise.app.compiling.table import advice, table

        Console().print(table(result))
        for line in advice(result):
            typer.echo(line)
    else:
        for name, value in result.items():
            typer.echo(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
