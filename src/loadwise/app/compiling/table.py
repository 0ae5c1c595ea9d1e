"""The result of `loadwise compile`, for people."""

from __future__ import annotations

import statistics
from typing import Any

from rich.table import Table

from loadwise.app.compiling.row import CONCURRENCIES

MIB = 1024**2


def table(result: dict[str, Any]) -> Table:
    """One line per form with its speed, below it the step's milliseconds; what was not run says why."""
    speeds = [f"{count} req\nt/s\nms" for count in CONCURRENCIES]
    columns = ["form", "made\ns", *speeds, "speed-up", "same\ntop", "loss", "MiB"]
    title = (
        f"{result['model']}: medians of {result['runs']} runs in turns. At 1, 8 and 32 requests: "
        "tokens per second of all, milliseconds per step"
    )
    made = Table(title=title, padding=(0, 0))
    for column in columns:
        made.add_column(column, justify="left" if column == "form" else "right", no_wrap=True)
    for row in result["rows"]:
        made.add_row(*_cells(row))
    return made


def advice(result: dict[str, Any]) -> list[str]:
    """What to do with it, what was made, and why forms are missing."""
    best = result["recommended"]
    said = (
        "Nothing could be measured."
        if best is None
        else f"Recommended: {best['backend']}/{best['mode']}, the fastest that answers as the model does. "
        "The next 'loadwise serve' of this folder serves it."
    )
    missing = [f"{_name(row)}: {row['reason']}" for row in result["rows"] if row["reason"]]
    read = {row["agreement"]["texts"] for row in result["rows"] if row["agreement"]}
    texts = [f"Agreement is over texts of: {', '.join(sorted(read))}."] if read else []
    return [said, *texts, *_variants(result), *missing, *_packages(result)]


def _variants(result: dict[str, Any]) -> list[str]:
    """How a variant is served, with what it costs and gains."""
    best, found = result["recommended"], [row for row in result["rows"] if row["quantised"]]
    if not found:
        return []
    base = next((row for row in found if row["run"]), None)
    marked = ["* quantised: a variant with a quality of its own, never a replacement."]
    if base is None:
        return marked
    against = None if best is None else next(row for row in result["rows"] if _key(row) == _key(best))
    told = [_variant(row, against) for row in found if row["run"]]
    name = f"{result['model']}-{base['mode']}"
    member = f"models: {{{name}: {{path: {result['folder']}, form: {_name(base)}}}}}"
    return [*marked, *told, f"A variant is served as a member of its own, in the settings: {member}"]


def _variant(row: dict[str, Any], against: dict[str, Any] | None) -> str:
    kept = f"{_name(row)} keeps {row['quality']:.2%} of the model's quality"
    if against is None:
        return f"{kept}."
    pairs = [(row["tokens_per_s"][count], against["tokens_per_s"][count]) for count in row["tokens_per_s"]]
    ratio = statistics.geometric_mean([own / other for own, other in pairs])
    return f"{kept} at {ratio:.2f} times the speed of {_name(against)}."


def _packages(result: dict[str, Any]) -> list[str]:
    kept = [row for row in result["rows"] if row["package"]]
    lines = [
        f"  {_name(row)}: {row['package']['path']} ({row['package']['bytes'] / MIB:.1f} MiB)" for row in kept
    ]
    return ["Packages:", *lines] if lines else []


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["backend"], row["mode"]


def _name(row: dict[str, Any]) -> str:
    return "/".join(_key(row))


def _cells(row: dict[str, Any]) -> list[str]:
    name = f"{_name(row)}{' *' if row['quantised'] else ''}"
    if not row["run"]:
        return [name, "not run"]
    judged, speedup = row["agreement"], row["speedup"]
    interval = row["speedup_interval"]
    counts = [str(count) for count in CONCURRENCIES]
    speeds = [f"{row['tokens_per_s'][count]:.0f}\n{row['step_ms'][count]:.3g}" for count in counts]
    return [
        name,
        f"{row['build_s']:.0f}",
        *speeds,
        "" if speedup is None else f"{speedup:.2f} [{interval[0]:.1f}, {interval[1]:.1f}]",
        f"{judged['same_top']:.1%}{' wrong' if judged['wrong'] and not row['quantised'] else ''}",
        f"{judged['loss_off']:+.2%}",
        f"{row['memory_bytes'] / MIB:.0f}",
    ]
