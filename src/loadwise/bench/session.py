"""One call of `loadwise bench`: opens the client, runs, shows and saves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadwise.bench import report
from loadwise.bench.capacity import find_capacity
from loadwise.bench.client import Client, Target
from loadwise.bench.compare import compare
from loadwise.bench.plan import Source, Workload
from loadwise.bench.runner import (
    OnProgress,
    Run,
    Runner,
    choose_prompts,
    samples_csv,
    server_models,
    server_qualities,
)
from loadwise.bench.summary import Summary
from loadwise.decision.facts import Objectives
from loadwise.errors import ConfigurationError

# Below this many requests a share of 95 % says little.
FEWEST_REQUESTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What one call was asked to do."""

    target: Target
    model: str = "auto"
    workload: Workload = field(default_factory=Workload)
    objectives: Objectives = field(default_factory=Objectives)
    offsets: int = 5
    # Empty: all active members.
    members: tuple[str, ...] = ()
    tokenizer: Path | None = None
    settle_s: float = 5.0
    out: Path | None = None
    tables: bool = True
    command: str = "loadwise bench"


async def run_single(options: Options) -> dict[str, Any]:
    """One replay: shown, saved, and returned as JSON values."""
    source = Source(options.workload)
    async with open_runner(options) as runner:
        await runner.warm_up([options.model])
        fitted = source.arrivals()
        run = await runner.run(options.model, fitted.arrivals, options.workload.duration_s)
    result = _document("run", options, {"requests_cut_to_context": fitted.cut, **report.run_json(run)})
    _show(options, report.summary_table(run.summary))
    if options.out is not None:
        _save(options, result, {"requests.csv": samples_csv(run.samples)})
        from loadwise.bench.picture import draw_run

        draw_run(run, options.out / "bench.png")
    return result


async def run_comparison(options: Options) -> dict[str, Any]:
    """Optimised and fixed members over all offsets: shown, saved, and returned as JSON values."""
    source = Source(options.workload, options.offsets)
    async with open_runner(options) as runner:
        members = options.members or tuple(runner.qualities)
        if not members:
            raise ConfigurationError(
                f"{options.target.url} names no members; give --member.", field="--member"
            )
        await runner.warm_up([options.model, *members])

        async def run_one(model: str, offset: int) -> Run:
            return await runner.run(model, source.arrivals(offset).arrivals, options.workload.duration_s)

        comparison = await compare(
            run_one, options.model, members, options.offsets, settle_s=options.settle_s
        )
    offsets_s = [source.offset_s(number) for number in range(options.offsets)]
    result = _document("compare", options, {"offsets_s": offsets_s, **comparison.as_json()})
    _show(options, report.comparison_table(comparison), report.contrast_table(comparison))
    if options.out is not None:
        _save(options, result, {"compare.md": report.markdown(comparison)})
        from loadwise.bench.picture import draw_comparison

        draw_comparison(comparison, options.out / "bench.png")
    return result


async def run_capacity(options: Options) -> dict[str, Any]:
    """The highest rate that the model sustains: shown, saved, and returned as JSON values."""
    start_per_s = options.workload.rate_per_s or 1.0
    source = Source(options.workload.changed_rate(start_per_s), options.offsets)
    async with open_runner(options) as runner:
        await runner.warm_up([options.model])

        async def at_rate(rate_per_s: float) -> list[Summary]:
            return await probe(runner, source, options, rate_per_s)

        capacity = await find_capacity(at_rate, start_per_s=start_per_s)
    result = _document("capacity", options, {"model": options.model, **asdict(capacity)})
    _show(options, report.capacity_table(options.model, capacity))
    if options.out is not None:
        _save(options, result, {})
    return result


async def probe(runner: Runner, source: Source, options: Options, rate_per_s: float) -> list[Summary]:
    """Runs at one rate: one window after the other, until they hold enough requests."""
    summaries: list[Summary] = []
    for offset in range(options.offsets):
        arrivals = source.arrivals(offset, rate_per_s).arrivals
        run = await runner.run(options.model, arrivals, options.workload.duration_s)
        summaries.append(run.summary)
        if sum(summary.requests for summary in summaries) >= FEWEST_REQUESTS:
            break
    return summaries


@asynccontextmanager
async def open_runner(options: Options) -> AsyncIterator[Runner]:
    """A runner for the server of these options; refuses a model that it does not list, and a lost result."""
    if options.out is not None:
        report.require_folder(options.out)
    async with Client(options.target) as client:
        models = await server_models(client)
        if models and options.model not in models:
            raise ConfigurationError(
                f"{options.target.url} has no model {options.model!r}. It serves: {', '.join(models)}.",
                field="--model",
            )
        prompts = await choose_prompts(client, options.model, options.tokenizer, options.workload.seed)
        qualities = await server_qualities(client)
        with _progress(options.tables) as on_progress:
            yield Runner(client, prompts, options.objectives, on_progress, qualities)


@contextmanager
def _progress(shown: bool) -> Iterator[OnProgress]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda model, ended, total: bar.update(task, description=model, completed=ended, total=total)


def _document(kind: str, options: Options, results: dict[str, Any]) -> dict[str, Any]:
    return report.document(kind, options.command, options.workload, options.objectives, results)


def _show(options: Options, *tables: RenderableType) -> None:
    if options.tables:
        console = Console()
        if not console.is_terminal:
            # A file has no width that tables would have to fit.
            console.width = 160
        for table in tables:
            console.print(table)


def _save(options: Options, result: dict[str, Any], texts: dict[str, str]) -> None:
    if options.out is None:
        return
    report.save_json(options.out, "bench.json", result)
    for name, text in texts.items():
        report.save_text(options.out, name, text)
    _show(options, f"Saved in {options.out}/")
