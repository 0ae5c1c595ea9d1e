"""Pictures of runs; needs the extra `bench` (matplotlib)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loadwise.bench.compare import Comparison
from loadwise.bench.runner import Run
from loadwise.bench.summary import within
from loadwise.errors import MissingExtraError

# Okabe and Ito's colours: told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


def _figure(rows: int, *, shared: bool = False) -> tuple[Any, Sequence[Any]]:
    try:
        # The object interface draws without a display and keeps nothing in global state.
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(
            "Pictures need matplotlib: pip install 'loadwise[bench]', or leave --out away."
        ) from None
    figure = Figure(figsize=(9.0, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False, sharex=shared)[:, 0]
    return figure, list(axes)


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def draw_run(run: Run, path: Path) -> Path:
    """One run over time: offered and good requests, latency, members, strategies. The path after writing."""
    figure, (rates, latency, members, strategies) = _figure(4, shared=True)
    parts = run.timeline()
    times = [part["t_s"] for part in parts]
    rates.step(
        times, [part["offered_per_s"] for part in parts], where="post", color="#999999", label="offered"
    )
    rates.step(
        times, [part["goodput_per_s"] for part in parts], where="post", color=_COLOURS[2], label="goodput"
    )
    rates.set(
        ylabel="requests/s", title=f"{run.summary.model}: {run.summary.within_fraction:.1%} within objectives"
    )
    rates.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    _scatter(latency, run)
    _stack(members, parts, "members", "answers by member")
    _stack(strategies, parts, "strategies", "answers by strategy")
    strategies.set(xlabel="seconds")
    return _save(figure, path)


def _scatter(axis: Any, run: Run) -> None:
    for good, colour, label in ((True, _COLOURS[2], "within objectives"), (False, _COLOURS[5], "missed")):
        points = [
            (s.scheduled_s, s.time_to_first_token_s)
            for s in run.samples
            if s.time_to_first_token_s is not None and within(s, run.objectives) is good
        ]
        axis.scatter([t for t, _ in points], [v for _, v in points], s=6, color=colour, label=label)
    axis.axhline(run.objectives.time_to_first_token_s, color="#999999", linewidth=0.8)
    axis.set(ylabel="first token, s", yscale="log")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _stack(axis: Any, parts: Sequence[dict[str, Any]], key: str, label: str) -> None:
    names = sorted({name for part in parts for name in part[key]})
    width_s = parts[1]["t_s"] if len(parts) > 1 else 1.0
    base = [0] * len(parts)
    for number, name in enumerate(names):
        heights = [part[key].get(name, 0) for part in parts]
        colour = _COLOURS[number % len(_COLOURS)]
        axis.bar(
            [p["t_s"] for p in parts], heights, width_s, bottom=base, align="edge", color=colour, label=name
        )
        base = [low + height for low, height in zip(base, heights, strict=True)]
    axis.set(ylabel=label)
    if names:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_comparison(comparison: Comparison, path: Path) -> Path:
    """Goodput and quality served of every candidate, a dot per run. The path after writing."""
    figure, (goodput, quality) = _figure(2)
    models = list(comparison.runs)
    _dots(goodput, comparison, lambda run: run.summary.goodput_per_s)
    goodput.set(ylabel="goodput, requests/s", ylim=(0, None))
    _dots(quality, comparison, lambda run: run.summary.quality_served)
    quality.set(ylabel="quality served")
    for axis in (goodput, quality):
        axis.set_xticks(range(len(models)), models)
    return _save(figure, path)


def _dots(axis: Any, comparison: Comparison, value_of: Callable[[Run], float | None]) -> None:
    for place, runs in enumerate(comparison.runs.values()):
        values = [value for value in map(value_of, runs) if value is not None]
        colour = _COLOURS[place % len(_COLOURS)]
        if values:
            axis.bar(place, sum(values) / len(values), 0.6, color=colour, alpha=0.5)
        axis.scatter([place] * len(values), values, color=colour, zorder=3)
