"""The diagnosis as plain text, for a terminal at night."""

from __future__ import annotations

from collections.abc import Sequence

from loadwise.decision.burn import Share, rate
from loadwise.decision.diagnosis import Burn, Diagnosis, Stage, Traffic
from loadwise.ports import JsonObject

ABSENT = "no data yet"


def text(
    diagnosis: Diagnosis,
    *,
    heading: str,
    bypass: str,
    target: float,
    builds: Sequence[str],
    changes: Sequence[JsonObject],
) -> str:
    """The diagnosis in reading order; `changes` have `ago_s`, `what`, `reason`, `undo` and `rests`."""
    lines = [heading, diagnosis.fault.sentence, bypass, ""]
    lines += [f"Objectives (burn: share missed over the {1.0 - target:.0%} that may be):"]
    lines += _table([_burn(burn, target) for burn in diagnosis.burns], ("", "5 min", "1 h")) or [
        f"  {ABSENT}: no request ended in the last hour"
    ]
    lines += ["", "Requests:", _traffic("5 min", diagnosis.short), _traffic("1 h", diagnosis.long)]
    lines += ["", "Where time goes (means of 5 minutes):", *(_stage(stage) for stage in diagnosis.stages)]
    lines += ["", "Builds:", *(f"  {line}" for line in builds)] if builds else []
    lines += ["", "Changed by loadwise in the last hour:"]
    lines += [line for change in changes for line in _change(change)] or ["  nothing"]
    return "\n".join(lines) + "\n"


def _traffic(span: str, traffic: Traffic) -> str:
    ended, failed, refused = traffic
    return f"  {span:<6} {ended} reached an engine, {failed} of them failed; {refused} were refused before"


def burn_text(share: Share, target: float) -> str:
    """A burn rate with the requests behind it."""
    burning = rate(share, target)
    return ABSENT if burning is None else f"{burning:.1f}x ({share.missed} of {share.judged} missed)"


def objective_text(burn: Burn) -> str:
    """The objective and its limit."""
    return burn.objective if burn.limit_s is None else f"{burn.objective} ≤ {burn.limit_s:g} s"


def _burn(burn: Burn, target: float) -> tuple[str, str, str]:
    hot = "!" if (rate(burn.short, target) or 0.0) > 1.0 else " "
    name = f"{hot} {burn.route}: {objective_text(burn)}"
    return name, burn_text(burn.short, target), burn_text(burn.long, target)


def _stage(stage: Stage) -> str:
    taken = "cannot be told" if stage.mean_s is None else f"{1000.0 * stage.mean_s:.1f} ms"
    return f"  {stage.name:<8} {taken:>14}" + (f"  ({stage.note})" if stage.note else "")


def _change(change: JsonObject) -> list[str]:
    minutes = int(change["ago_s"] // 60)
    lines = [f"  {minutes} min ago: {change['what']} ({change['reason']})"]
    undo = change["undo"]
    return [*lines, f"      undo: {undo}" if undo else f"      {change['rests']}"]


def _table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
