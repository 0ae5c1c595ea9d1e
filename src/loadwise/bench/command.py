"""`loadwise bench`: the options, and what is run for them."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loadwise.errors import ConfigurationError

if TYPE_CHECKING:
    from loadwise.bench.session import Options

bench_app = typer.Typer(invoke_without_command=True, no_args_is_help=False, add_completion=False)


Url = Annotated[str, typer.Option(help="The running server.", envvar="LOADWISE_URL")]
Model = Annotated[str, typer.Option(help="Model that is asked; auto is optimised.")]
WorkloadName = Annotated[
    str,
    typer.Option(help="poisson, bursts, diurnal, steps, or a trace file (CSV, Azure, BurstGPT, Mooncake)."),
]
Rate = Annotated[
    float | None, typer.Option(help="Mean requests per second; a trace is thinned or merged to it.")
]
Duration = Annotated[float, typer.Option(help="Seconds of each run.")]
Seed = Annotated[int, typer.Option(help="Seed of arrivals, lengths and prompts.")]
Offsets = Annotated[int, typer.Option(min=1, help="Runs of --compare: windows of a trace, or seeds.")]
Compare = Annotated[bool, typer.Option("--compare", help="Also run with each member fixed, interleaved.")]
FindCapacity = Annotated[
    bool, typer.Option("--find-capacity", help="Find the highest rate that the model sustains.")
]
Members = Annotated[list[str] | None, typer.Option(help="Members to compare; all active ones by default.")]
ScaleLengths = Annotated[float, typer.Option(help="Divide all lengths by this.")]
Context = Annotated[int, typer.Option(min=2, help="Prompt and answer are cut to this many tokens.")]
Ttft = Annotated[float, typer.Option(help="Objective: seconds to the first token.")]
Tpot = Annotated[float, typer.Option(help="Objective: seconds per further token.")]
TokenizerPath = Annotated[
    Path | None, typer.Option(help="tokenizer.json or a model's folder, for prompts of exact length.")
]
Chat = Annotated[bool, typer.Option("--chat", help="Use chat completions.")]
Settle = Annotated[float, typer.Option(min=0, help="Seconds of rest between runs.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Longest answer in seconds; longer ones failed.")]
Out = Annotated[Path | None, typer.Option(help="Save JSON, CSV and a picture in this folder.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
ApiKey = Annotated[str | None, typer.Option(help="The server's key.", envvar="LOADWISE_API_KEY")]
AdminKey = Annotated[
    str | None, typer.Option(help="The server's admin key, to read qualities.", envvar="LOADWISE_ADMIN_KEY")
]


@bench_app.callback()
def bench(
    url: Url = "http://127.0.0.1:2240",
    model: Model = "auto",
    workload: WorkloadName = "poisson",
    rate: Rate = None,
    duration: Duration = 60.0,
    seed: Seed = 0,
    offsets: Offsets = 5,
    compare: Compare = False,
    find_capacity: FindCapacity = False,
    member: Members = None,
    scale_lengths: ScaleLengths = 1.0,
    context: Context = 1000,
    ttft: Ttft = 1.0,
    tpot: Tpot = 0.05,
    tokenizer: TokenizerPath = None,
    chat: Chat = False,
    settle: Settle = 5.0,
    timeout: Timeout = 120.0,
    out: Out = None,
    as_json: JsonFlag = False,
    api_key: ApiKey = None,
    admin_key: AdminKey = None,
) -> None:
    """Replay a workload open-loop against a running server, and count what was within its objectives."""
    # Here, so that the other commands do not wait for the client's imports.
    from loadwise.bench.client import Target
    from loadwise.bench.plan import Workload
    from loadwise.bench.session import Options, run_capacity, run_comparison, run_single
    from loadwise.decision.facts import Objectives

    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"--url must begin with http:// or https://, not {url!r}.", field="--url")
    for flag, limit_s in (("--ttft", ttft), ("--tpot", tpot)):
        if not limit_s > 0:
            raise ConfigurationError(f"{flag} must be above 0, not {limit_s:g}.", field=flag)
    if compare and find_capacity:
        raise ConfigurationError("Choose one of --compare and --find-capacity.")
    options = Options(
        target=Target(url.rstrip("/"), api_key, admin_key, chat, timeout),
        model=model,
        workload=Workload(workload, rate, duration, seed, scale_lengths, context),
        objectives=Objectives(time_to_first_token_s=ttft, time_per_output_token_s=tpot),
        offsets=offsets,
        members=tuple(member or ()),
        tokenizer=tokenizer,
        settle_s=settle,
        out=out,
        tables=not as_json,
        command=_own_command(),
    )
    result = _run(run_comparison if compare else run_capacity if find_capacity else run_single, options)
    if as_json:
        typer.echo(json.dumps(result, indent=2))


def _own_command() -> str:
    """The command line as it was typed, without the values of keys."""
    words = list(sys.argv[1:])
    for place, word in enumerate(words):
        name, separator, _ = word.partition("=")
        if name in {"--api-key", "--admin-key"}:
            if separator:
                words[place] = f"{name}=..."
            elif place + 1 < len(words):
                words[place + 1] = "..."
    return shlex.join(["loadwise", *words])


def _run(command: Callable[[Options], Awaitable[dict[str, Any]]], options: Options) -> dict[str, Any]:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            return runner.run(_awaited(command, options))
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


async def _awaited(
    command: Callable[[Options], Awaitable[dict[str, Any]]], options: Options
) -> dict[str, Any]:
    return await command(options)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
