"""`loadwise status`."""

from __future__ import annotations

from loadwise.cli.client import DEFAULT_URL, AdminKey, Url, fetch
from loadwise.cli.printing import JsonFlag, print_values


def status(url: Url = DEFAULT_URL, admin_key: AdminKey = None, as_json: JsonFlag = False) -> None:
    """Show what a running server measures and decides."""
    print_values(fetch(url, "/v1/optimization/dashboard", admin_key), f"loadwise at {url}", as_json)
