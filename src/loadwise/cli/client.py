"""How commands ask a running server: its address, keys, and errors that say what to check."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from loadwise.errors import ConfigurationError, LoadwiseError

Url = Annotated[str, typer.Option(help="The running server.", envvar="LOADWISE_URL")]
ApiKey = Annotated[str | None, typer.Option(help="The server's key.", envvar="LOADWISE_API_KEY")]
AdminKey = Annotated[str | None, typer.Option(help="Admin key of the server.", envvar="LOADWISE_ADMIN_KEY")]
DEFAULT_URL = "http://127.0.0.1:2240"
# The server sends an event a second; a line that is this late will not come.
TIMEOUT_S = 10


def fetch(url: str, path: str, admin_key: str | None, api_key: str | None = None) -> Any:
    """A GET of the control plane as JSON values, or a `LoadwiseError` that says what to check."""
    try:
        return json.loads(fetch_text(url, path, admin_key, api_key))
    except ValueError as error:
        raise _unreachable(url, path, error) from None


def fetch_text(url: str, path: str, admin_key: str | None, api_key: str | None = None) -> str:
    """A GET of the control plane as text, or a `LoadwiseError` that says what to check."""
    return "".join(line + "\n" for line in stream(url, path, admin_key, api_key))


def stream(url: str, path: str, admin_key: str | None, api_key: str | None = None) -> Iterator[str]:
    """The lines of a GET as they come, or a `LoadwiseError` that says what to check."""
    from urllib.error import HTTPError, URLError
    from urllib.parse import urlsplit
    from urllib.request import Request, urlopen

    if urlsplit(url).scheme not in {"http", "https"}:
        raise ConfigurationError(f"--url must begin with http:// or https://, not {url!r}.", field="--url")
    headers = {"x-loadwise-admin-key": admin_key} if admin_key else {}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    try:
        # The scheme was checked above.
        with urlopen(Request(url.rstrip("/") + path, headers=headers), timeout=TIMEOUT_S) as answer:  # noqa: S310
            for line in answer:
                yield line.decode("utf-8").rstrip("\n")
    except HTTPError as error:
        raise LoadwiseError(f"{url} answered {error.code} {error.reason}; is the key right?") from None
    except (URLError, OSError, ValueError) as error:
        raise _unreachable(url, path, error) from None


def _unreachable(url: str, path: str, error: Exception) -> LoadwiseError:
    return LoadwiseError(f"Cannot read {url}{path}: {error}. Is 'loadwise serve' running there?")
