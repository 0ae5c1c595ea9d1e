"""loadwise against each member fixed, on a recorded trace, above and below what the best member sustains.

    python benchmarks/compare_trace.py --trace AzureLLMInferenceTrace_conv.csv [--config FILE.yaml]

Starts `loadwise serve` on a free port, finds the highest rate at which `--member` keeps 95 % of the requests
within their objectives, then replays windows of the trace at twice and at half that rate: the same requests
at the same times with `auto` and with each member fixed, interleaved. Thinning (or merging) sets the rate,
time is never stretched; lengths are divided by `--scale-lengths` to fit the models' context.
The trace: https://github.com/Azure/AzurePublicDataset (AzureLLMInferenceTrace_conv.csv, CC-BY-4.0).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from servers import Server, free_port, shown, stop_servers_when_told

from loadwise.bench import report
from loadwise.bench.capacity import Capacity, find_capacity
from loadwise.bench.client import Target
from loadwise.bench.compare import Comparison, compare
from loadwise.bench.picture import draw_comparison, draw_run
from loadwise.bench.plan import Source, Workload
from loadwise.bench.runner import Run, Runner
from loadwise.bench.session import Options, open_runner
from loadwise.bench.summary import Summary
from loadwise.decision.beliefs import MEASURED_OUTCOMES
from loadwise.errors import ConfigurationError

HELD_SHARE = 0.95
WARM_UPS = MEASURED_OUTCOMES
# Wide enough for the tables where the output is a file.
CONSOLE = Console(width=None if sys.stdout.isatty() else 160)


def server(arguments: argparse.Namespace) -> Server:
    """`loadwise serve` with the configuration given, else its own models and the `adaptive` selection."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("loadwise")), "serve", "--port", str(port)]
    if arguments.config is not None:
        command += ["--config", str(arguments.config)]
    for model in arguments.model:
        command += ["--model", model]
    env = {} if arguments.config else {"LOADWISE_OPTIMIZATION__ENSEMBLE_STRATEGY": "adaptive"}
    log = Path(tempfile.mkdtemp(prefix="compare-trace-")) / "loadwise.log"
    return Server("loadwise", command, f"http://127.0.0.1:{port}", log, env, "/health/readiness")


def options_of(arguments: argparse.Namespace, url: str) -> Options:
    """The benchmark's options for a server at `url`."""
    return Options(
        target=Target(url),
        workload=Workload(
            source=str(arguments.trace),
            duration_s=arguments.duration,
            seed=arguments.seed,
            scale_lengths=arguments.scale_lengths,
            context_tokens=arguments.context,
        ),
        offsets=arguments.offsets,
        tokenizer=arguments.tokenizer,
        settle_s=arguments.settle,
    )


async def sustained(runner: Runner, options: Options, arguments: argparse.Namespace) -> Capacity:
    """What the member sustains on this trace, in windows as long as those compared."""
    if arguments.rate is not None:
        return Capacity(arguments.rate, None, ())
    fixed = replace(options, model=arguments.member)
    source = Source(options.workload.changed_rate(1.0), options.offsets)

    async def at_rate(rate_per_s: float) -> list[Summary]:
        # All windows: lengths differ from one to another, and with them what is sustained.
        summaries = []
        for offset in range(options.offsets):
            arrivals = source.arrivals(offset, rate_per_s).arrivals
            run = await runner.run(fixed.model, arrivals, options.workload.duration_s)
            summaries.append(run.summary)
            await asyncio.sleep(options.settle_s)
        return summaries

    return await find_capacity(at_rate, start_per_s=arguments.start_rate, wanted_fraction=HELD_SHARE)


async def at_load(
    runner: Runner, options: Options, members: Sequence[str], rate_per_s: float
) -> tuple[Comparison, list[float]]:
    """`auto` and the members over all windows at one rate, and where the windows begin in the trace."""
    source = Source(options.workload.changed_rate(rate_per_s), options.offsets)

    async def run_one(model: str, offset: int) -> Run:
        return await runner.run(model, source.arrivals(offset).arrivals, options.workload.duration_s)

    comparison = await compare(run_one, "auto", members, options.offsets, settle_s=options.settle_s)
    return comparison, [source.offset_s(number) for number in range(options.offsets)]


async def measure(arguments: argparse.Namespace, options: Options) -> dict[str, Any]:
    """The whole benchmark: capacity, then twice and half of it."""
    async with open_runner(options) as runner:
        members = list(runner.qualities)
        if arguments.member not in members:
            raise ConfigurationError(f"--member {arguments.member!r} is none of {', '.join(members)}.")
        # So often that speeds are known: a member that nobody measured is neither trusted nor protected.
        for _ in range(WARM_UPS):
            await runner.warm_up(["auto", *members])
        capacity = await sustained(runner, options, arguments)
        CONSOLE.print(report.capacity_table(arguments.member, capacity))
        if capacity.sustained_per_s <= 0:
            raise ConfigurationError(
                f"{arguments.member} sustains no rate on this machine: use smaller models."
            )
        results: dict[str, Any] = {"member": arguments.member, "capacity": asdict(capacity)}
        for name, factor, fixed in (("twice", 2.0, members), ("half", 0.5, [arguments.member])):
            rate_per_s = factor * capacity.sustained_per_s
            comparison, offsets_s = await at_load(runner, options, fixed, rate_per_s)
            show(name, rate_per_s, comparison, arguments)
            results[name] = {"rate_per_s": rate_per_s, "offsets_s": offsets_s, **comparison.as_json()}
    return results


def show(name: str, rate_per_s: float, comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Tables on the screen; Markdown and pictures beside the results."""
    share = report.member_shares(comparison.summaries("auto")).get(arguments.member, 0.0)
    CONSOLE.rule(f"{name} of what {arguments.member} sustains: {rate_per_s:.2f} requests/s")
    CONSOLE.print(report.comparison_table(comparison), report.contrast_table(comparison))
    CONSOLE.print(f"auto gave {share:.1%} of the requests to {arguments.member}.")
    print(report.markdown(comparison))
    if arguments.out is not None:
        draw_comparison(comparison, arguments.out.with_name(f"{arguments.out.stem}_{name}.png"))
        draw_run(comparison.runs["auto"][0], arguments.out.with_name(f"{arguments.out.stem}_{name}_auto.png"))


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, required=True, help="a trace file; see above for a public one")
    parser.add_argument("--config", type=Path, help="YAML settings of the server")
    parser.add_argument("--model", action="append", default=[], help="NAME=DIR, as for `loadwise serve`")
    parser.add_argument("--url", help="a running server instead of one of its own")
    parser.add_argument("--member", default="accurate", help="the member whose capacity sets the rates")
    parser.add_argument("--rate", type=float, help="what the member sustains, if it is known already")
    parser.add_argument("--start-rate", type=float, default=4.0, help="where the search for it begins")
    parser.add_argument("--duration", type=float, default=40.0, help="seconds of each window")
    parser.add_argument("--offsets", type=int, default=5, help="windows of the trace")
    parser.add_argument("--scale-lengths", type=float, default=5.0)
    parser.add_argument("--context", type=int, default=1000)
    parser.add_argument("--settle", type=float, default=5.0, help="seconds of rest between runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--out", type=Path, help="save the results as JSON, and pictures beside it")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Starts, measures, saves."""
    arguments = arguments_of(argv)
    stop_servers_when_told()
    if arguments.url is not None:
        options = options_of(arguments, arguments.url)
        results = asyncio.run(measure(arguments, options))
    else:
        with server(arguments) as own:
            options = options_of(arguments, own.url)
            results = {"server_command": shown(own.command), **asyncio.run(measure(arguments, options))}
    command = shown(["python", "benchmarks/compare_trace.py", *argv])
    workload = replace(options.workload, source=arguments.trace.name)
    document = report.document("compare-trace", command, workload, options.objectives, results)
    if arguments.out is not None:
        report.save_json(arguments.out.parent, arguments.out.name, document)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ConfigurationError as error:
        raise SystemExit(f"compare_trace: {error}") from None
