"""`loadwise serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loadwise.errors import ConfigurationError


def pairs(values: list[str] | None, flag: str, what: str) -> dict[str, str]:
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

    models = {name: {"path": path} for name, path in pairs(model, "--model", "DIR").items()}
    upstreams = {name: {"url": url} for name, url in pairs(upstream, "--upstream", "URL").items()}
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
