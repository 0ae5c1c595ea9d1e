"""`loadwise report`."""

from __future__ import annotations

from loadwise.cli.client import DEFAULT_URL, AdminKey, Url, fetch
from loadwise.cli.printing import JsonFlag, print_values


def report(url: Url = DEFAULT_URL, admin_key: AdminKey = None, as_json: JsonFlag = False) -> None:
    """Show the performance report: grade, objectives, recommendations."""
    values = fetch(url, "/v1/optimization/report", admin_key)
    if not as_json:
        values = {name: value for name, value in values.items() if name != "performance_history"}
    print_values(values, f"report of {url}", as_json)
