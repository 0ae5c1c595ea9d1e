"""How commands ask a running server: its address, keys, and errors that say what to check."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from loadwise.errors import ConfigurationError, LoadwiseError

Url = Annotated[str, typer.Option(help="The running server.", envvar="LOADWISE_URL")]
AdminKey = Annotated[str | None, typer.Option(help="Admin key of the server.", envvar="LOADWISE_ADMIN_KEY")]
DEFAULT_URL = "http://127.0.0.1:2240"


def fetch(url: str, path: str, admin_key: str | None) -> Any:
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
