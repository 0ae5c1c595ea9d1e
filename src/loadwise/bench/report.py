"""A benchmark's results on the screen and on disk."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryFile
from typing import Any

from rich.table import Table

from loadwise.bench.capacity import Capacity
from loadwise.bench.compare import Comparison
from loadwise.bench.intervals import Interval
from loadwise.bench.plan import Workload
from loadwise.bench.runner import Run
from loadwise.bench.summary import Summary
from loadwise.clock import SystemClock, iso_utc
from loadwise.decision.facts import Objectives
from loadwise.errors import ConfigurationError

ABSENT = "-"


def machine() -> dict[str, Any]:
    """What the client's machine is, and how busy it was when asked."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }


def _cpu_name() -> str | None:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
    return names[0] if names else None


def document(
    kind: str, command: str, workload: Workload, objectives: Objectives, results: Mapping[str, Any]
) -> dict[str, Any]:
    """A result file: what was run, where, when, with which command, and what came out."""
    return {
        "kind": kind,
        "command": command,
        "finished": iso_utc(SystemClock().wall_s()),
        "loadwise": version("loadwise"),
        "client_machine": machine(),
        "workload": asdict(workload),
        "objectives": asdict(objectives),
        **results,
    }


def save_text(folder: Path, name: str, text: str) -> Path:
    """The file's path after writing; `ConfigurationError` when the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"Cannot write {folder / name}: {error.strerror or error}.", field="--out"
        ) from None
    return folder / name


def require_folder(folder: Path) -> None:
    """The folder is there and takes files; `ConfigurationError` before a run whose result would be lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"Cannot write into {folder}: {error.strerror or error}.", field="--out"
        ) from None


def save_json(folder: Path, name: str, values: Mapping[str, Any]) -> Path:
    """The file's path after writing it as indented JSON."""
    return save_text(folder, name, json.dumps(values, indent=1) + "\n")


# --- tables ------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or a dash where it is not known."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def milliseconds(value_s: float | None) -> str:
    """Seconds as whole milliseconds, or a dash where they are not known."""
    return ABSENT if value_s is None else f"{value_s * 1000:.0f}"


def share_list(shares: Mapping[str, float]) -> str:
    """For example `accurate 80 %, fast 20 %`."""
    return ", ".join(f"{name} {share:.0%}".replace("%", " %") for name, share in shares.items()) or ABSENT


def summary_table(summary: Summary) -> Table:
    """One run's figures."""
    table = Table(
        title=f"{summary.model}: {summary.requests} requests in {summary.duration_s:g} s", show_header=False
    )
    failures = ", ".join(f"{count}x {error}" for error, count in summary.failures.items())
    rows = [
        ("offered", f"{summary.offered_per_s:.2f} requests/s"),
        ("goodput", f"{summary.goodput_per_s:.2f} requests/s"),
        ("within objectives", f"{summary.within_fraction:.1%}"),
        ("answered", f"{summary.answered} of {summary.requests}"),
        ("failed", failures or "none"),
        ("output", f"{summary.output_tokens_per_s:.0f} tokens/s"),
        ("time to first token", _quantiles(summary.time_to_first_token_s)),
        ("time per further token", _quantiles(summary.time_per_output_token_s)),
        ("whole answer", _quantiles(summary.total_s)),
        ("quality served", number(summary.quality_served, 3)),
        ("members", share_list(summary.member_shares)),
        ("strategies", share_list(summary.strategy_shares)),
        ("client's own delay, p99", f"{milliseconds(summary.client_lag_p99_s)} ms"),
    ]
    ratio = summary.prompt_length_ratio
    if ratio is not None and abs(ratio - 1.0) > 0.01:
        rows.append(("prompt lengths", f"{ratio:.2f} of those wanted"))
    if summary.short_answers:
        rows.append(("answers shorter than asked", str(summary.short_answers)))
    for name, value in rows:
        table.add_row(name, value)
    return table


def _quantiles(values: Mapping[str, float | None]) -> str:
    return "  ".join(f"{name} {milliseconds(value)}" for name, value in values.items()) + " ms"


COLUMNS = (
    "model",
    "offered/s",
    "goodput/s",
    "within",
    "TTFT p50/p95 ms",
    "TPOT p50/p95 ms",
    "quality",
    "members",
)


def comparison_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """One line per candidate: means over its runs, under the names of `COLUMNS`."""
    return [_candidate_row(model, comparison.summaries(model)) for model in comparison.runs]


def _candidate_row(model: str, runs: Sequence[Summary]) -> tuple[str, ...]:
    first, pace = (
        [getattr(run, name) for run in runs] for name in ("time_to_first_token_s", "time_per_output_token_s")
    )
    return (
        model,
        f"{fmean(run.offered_per_s for run in runs):.1f}",
        f"{fmean(run.goodput_per_s for run in runs):.2f}",
        f"{sum(run.within_objectives for run in runs) / max(1, sum(run.requests for run in runs)):.1%}",
        f"{milliseconds(_mean(q['p50'] for q in first))} / {milliseconds(_mean(q['p95'] for q in first))}",
        f"{milliseconds(_mean(q['p50'] for q in pace))} / {milliseconds(_mean(q['p95'] for q in pace))}",
        number(_mean(run.quality_served for run in runs), 3),
        share_list(member_shares(runs)),
    )


def member_shares(runs: Sequence[Summary]) -> dict[str, float]:
    """Each member's fraction of all answers over several runs, highest first."""
    answered = sum(run.answered for run in runs)
    counts: dict[str, float] = {}
    for run in runs:
        for member, share in run.member_shares.items():
            counts[member] = counts.get(member, 0.0) + share * run.answered
    return {name: count / answered for name, count in sorted(counts.items(), key=lambda item: -item[1])}


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def comparison_table(comparison: Comparison) -> Table:
    """Candidates side by side, means over the offsets."""
    runs = len(comparison.runs[comparison.optimised])
    table = Table(title=f"{comparison.optimised} against each member fixed, {runs} runs each")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in {"model", "members"} else "right")
    for row in comparison_rows(comparison):
        table.add_row(*row)
    return table


def contrast_table(comparison: Comparison) -> Table:
    """Paired differences with their 95 % intervals."""
    table = Table(title=f"{comparison.optimised} minus member, paired, 95 % intervals")
    for column in ("member", "goodput/s", "goodput ratio", "quality"):
        table.add_column(column, justify="left" if column == "member" else "right")
    for contrast in comparison.contrasts:
        table.add_row(
            contrast.member,
            interval(contrast.goodput_difference_per_s),
            interval(contrast.goodput_ratio),
            interval(contrast.quality_difference, 3),
        )
    return table


def interval(value: Interval | None, digits: int = 2) -> str:
    """For example `1.20 [0.90, 1.50]`; a dash where there is none."""
    if value is None:
        return ABSENT
    if value.low is None:
        return number(value.mean, digits)
    return f"{number(value.mean, digits)} [{number(value.low, digits)}, {number(value.high, digits)}]"


def capacity_table(model: str, capacity: Capacity) -> Table:
    """What was probed, and the highest rate that was sustained."""
    table = Table(title=f"{model} sustains {capacity.sustained_per_s:.2f} requests/s")
    for column in ("rate asked/s", "offered/s", "within", "sustained"):
        table.add_column(column, justify="right")
    for probe in capacity.probes:
        row = (f"{probe.rate_per_s:.2f}", f"{probe.offered_per_s:.2f}", f"{probe.within_fraction:.1%}")
        table.add_row(*row, "yes" if probe.sustained else "no")
    return table


def markdown(comparison: Comparison) -> str:
    """The candidates as a Markdown table, for a README."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row) + " |" for row in comparison_rows(comparison)]
    return "\n".join(lines) + "\n"


def run_json(run: Run) -> dict[str, Any]:
    """A run's figures and its timeline."""
    return {"summary": run.summary.as_json(), "timeline": run.timeline()}
