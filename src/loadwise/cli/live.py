"""The live status as a terminal shows it: the verdict, the figures, the members, what was changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

ABSENT = "–"
MEMBER_COLUMNS = (
    "member", "share", "first token p95", "within", "queue", "errors", "health", "weight", "build",
)  # fmt: skip
_STATUS = {"healthy": "green", "degraded": "yellow", "overloaded": "red", "bypassed": "yellow"}
_CULPRIT = {"nothing": "green", "unknown": "dim"}


def screen(frame: dict[str, Any], url: str) -> RenderableType:
    """The whole screen for one frame of the page's values."""
    return Group(_verdict(frame, url), _figures(frame), _members(frame), *_lists(frame))


def _verdict(frame: dict[str, Any], url: str) -> Panel:
    found = frame["diagnosis"]
    said = Text(found["sentence"], style=f"bold {_CULPRIT.get(found['culprit'], 'red')}")
    said.append("\n" + found["bypass"], style="yellow bold" if found["bypassed"] else "dim not bold")
    status = frame["system_status"]
    title = Text.assemble("loadwise at ", url, "  ", (status, _STATUS.get(status, "yellow")))
    return Panel(said, title=title, title_align="left")


def _figures(frame: dict[str, Any]) -> Table:
    strategy, load = frame["strategy"], frame["load"]
    latency, gain = frame["latency"]["time_to_first_token_s"], frame["improvement"]
    cells = {
        "load": ABSENT if load is None else number(load["score"]),
        "strategy": ABSENT if strategy is None else strategy["name"],
        "in flight": str(frame["requests"]["in_flight"]),
        "in 5 min": str(frame["requests"]["last_5m"]),
        "refused": str(frame["requests"]["refused_5m"]),
        "within objectives": percent(frame["requests"]["within_fraction_5m"]),
        "first token p50/p95": f"{seconds(latency['p50'])} / {seconds(latency['p95'])}",
        "gain": ABSENT if gain["value"] is None else _gain(gain),
    }
    table = Table(expand=True, box=None, header_style="dim")
    for name in cells:
        table.add_column(name)
    table.add_row(*(Text(cell, style="bold") for cell in cells.values()))
    return table


def _gain(gain: dict[str, Any]) -> str:
    return f"{100 * gain['value']:+.1f} pt ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"


def _members(frame: dict[str, Any]) -> Table:
    table = Table(title="members, last five minutes", title_justify="left", expand=True)
    for name in MEMBER_COLUMNS:
        table.add_column(name, justify="left" if name in ("member", "health", "build") else "right")
    for member in frame["members"]:
        waiting = member["waiting"]
        build = member["build"]
        table.add_row(
            Text(member["model_id"]),
            percent(member["share_5m"]),
            seconds(member["first_token_s"]["p95"]),
            percent(member["within_5m"]),
            f"{member['in_flight']} in flight" if waiting is None else f"{waiting} waiting",
            f"{member['failed_5m']} of {member['requests_5m']}",
            _health(member),
            number(member["weight"]),
            Text("as loaded" if build is None else f"{build['mode'] or ''} {build['state']}".strip()),
        )
    return table


def _health(member: dict[str, Any]) -> Text:
    """The member's own, and that of each of its replicas that is not well."""
    unwell = [f"{name} {health}" for name, health in member["replicas"].items() if health != "healthy"]
    well = member["health"] == "healthy" and not unwell
    return Text(", ".join([member["health"], *unwell]), style="green" if well else "red")


def _lists(frame: dict[str, Any]) -> Sequence[RenderableType]:
    alerts = [
        Text.assemble((alert["severity"], "red"), f" {alert['summary']}\n    {alert['remedy']}")
        for alert in frame["alerts"]
    ]
    changes = [
        Text.assemble((change["time"], "dim"), f" {change['what']} ({change['reason']})")
        for change in frame["changes"][:5]
    ]
    builds = [Text(line) for line in frame["builds_said"]]
    return [
        *([Text("builds", style="italic"), *builds] if builds else []),
        Text("alerts", style="italic"),
        *(alerts or [Text("none", style="dim")]),
        Text("changed by loadwise", style="italic"),
        *(changes or [Text("nothing yet", style="dim")]),
    ]


def number(value: float | None) -> str:
    """Two decimals, or a dash where nothing was measured."""
    return ABSENT if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    """Whole percent, or a dash where nothing was measured."""
    return ABSENT if value is None else f"{100 * value:.0f} %"


def seconds(value: float | None) -> str:
    """Milliseconds below one second, seconds above, or a dash where nothing was measured."""
    if value is None:
        return ABSENT
    return f"{1000 * value:.0f} ms" if value < 1.0 else f"{value:.2f} s"
