"""The result of `loadwise compile`, for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from loadwise.app.compiling.row import CONCURRENCIES

MIB = 1024**2


def table(result: dict[str, Any]) -> Table:
    """One line per form; what was not run says why."""
    speeds = [f"t/s\n{count}" for count in CONCURRENCIES]
    columns = ["form", "made\ns", "step\nms", *speeds, "speed-up", "same\ntop", "loss", "MiB"]
    title = f"{result['model']}: medians of {result['runs']} runs in turns; tokens/s at 1, 8, 32 requests"
    made = Table(title=title, padding=(0, 0))
    for column in columns:
        made.add_column(column, justify="left" if column == "form" else "right", no_wrap=True)
    for row in result["rows"]:
        made.add_row(*_cells(row))
    return made


def advice(result: dict[str, Any]) -> list[str]:
    """What to do with it, and why forms are missing."""
    best = result["recommended"]
    said = (
        "Nothing could be measured."
        if best is None
        else f"Recommended: {best['backend']}/{best['mode']}, the fastest that answers as the model does."
    )
    variants = "* quantised: a variant with a quality of its own, never a replacement."
    missing = [f"{row['backend']}/{row['mode']}: {row['reason']}" for row in result["rows"] if row["reason"]]
    read = {row["agreement"]["texts"] for row in result["rows"] if row["agreement"]}
    texts = [f"Agreement is over texts of: {', '.join(sorted(read))}."] if read else []
    marked = [variants] if any(row["quantised"] for row in result["rows"]) else []
    return [said, *texts, *marked, *missing]


def _cells(row: dict[str, Any]) -> list[str]:
    name = f"{row['backend']}/{row['mode']}{' *' if row['quantised'] else ''}"
    if not row["run"]:
        return [name, "not run"]
    judged, speedup = row["agreement"], row["speedup"]
    interval = row["speedup_interval"]
    speeds = [f"{row['tokens_per_s'][str(count)]:.0f}" for count in CONCURRENCIES]
    return [
        name,
        f"{row['build_s']:.0f}",
        f"{row['step_ms']['1']:.2f}",
        *speeds,
        "" if speedup is None else f"{speedup:.2f} [{interval[0]:.1f}, {interval[1]:.1f}]",
        f"{judged['same_top']:.1%}{' wrong' if judged['wrong'] and not row['quantised'] else ''}",
        f"{judged['loss_off']:+.2%}",
        f"{row['memory_bytes'] / MIB:.0f}",
    ]
