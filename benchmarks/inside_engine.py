"""What loadwise costs inside a real engine: its start, and the time per token, with and without, in pairs.

Starts alternate: an engine with the plugin, one without, timed from the command to the first `/health`
that answers. The last two of them stay; each window streams answers of equal length from one of them, in
random order within a pair, while the other is paused. Figures are means over pairs with their 95 % interval
(Student's t): seconds of start more, the share by which p50 and p99 of the gaps between tokens grew, and the
processor time of the API server's process per token more, which is what loadwise itself takes there. Two
engines differ by chance too: `--null` compares two without loadwise, and shows by how much.

    python benchmarks/inside_engine.py --engines .cache/engines                  # Aphrodite, about 6 minutes
    python benchmarks/inside_engine.py --engines .cache/engines --engine vllm    # vLLM, about 8 minutes
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import aiohttp
import psutil
from monitoring_overhead import interval
from servers import Server, free_port, shown, stop_servers_when_told

START_GOAL_S = 1.0
P99_GOAL = 0.01
# Not counted at the beginning of a window: requests begin together, and who was paused wakes up.
SETTLING_S = 1.0
COMMANDS: Mapping[str, Sequence[str]] = {"aphrodite": ("aphrodite", "run"), "vllm": ("vllm", "serve")}
ENVIRONMENT = {
    "APHRODITE_TARGET_DEVICE": "cpu",
    "APHRODITE_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONPATH": "",
}


def engine(side: str, number: int, folder: Path, options: argparse.Namespace) -> Server:
    """An engine that was not started yet, with (`on`) or without loadwise."""
    port, home = free_port(), folder / f"{side}{number}"
    home.mkdir()
    plugins = "loadwise" if side == "on" and not options.null else "none"
    program, *words = COMMANDS[options.engine]
    return Server(
        name=f"{options.engine} {side}",
        command=[
            str(options.engines / options.engine / "bin" / program), *words, str(options.model),
            "--served-model-name", "small", "--max-num-seqs", "8", "--port", str(port),
        ],
        url=f"http://127.0.0.1:{port}",
        log=home / "log",
        env={
            **ENVIRONMENT,
            f"{options.engine.upper()}_PLUGINS": plugins,
            "LOADWISE_STATE_DIR": str(home),
        },
        ready_path="/health",
    )  # fmt: skip


def started(stack: ExitStack, side: str, number: int, folder: Path, options: argparse.Namespace) -> Any:
    """A running engine and the seconds that its start took."""
    server = engine(side, number, folder, options)
    began_s = monotonic()
    stack.enter_context(server)
    return server, monotonic() - began_s


async def gaps_s(url: str, options: argparse.Namespace, seconds: float) -> list[float]:
    """Seconds between the tokens of streams that a few callers keep going for so long."""
    body = {"model": "small", "max_tokens": options.tokens, "stream": True, "ignore_eos": True}
    began_s, found = monotonic(), list[float]()

    async def caller(client: aiohttp.ClientSession, number: int) -> None:
        while monotonic() - began_s < seconds:
            asked = {**body, "prompt": f"def read_{number}(path):"}
            async with client.post(url + "/v1/completions", json=asked) as answer:
                if answer.status != 200:
                    raise SystemExit(f"status {answer.status}: {(await answer.text())[:300]}")
                before_s = None
                async for line in answer.content:
                    if not line.startswith(b"data: {"):
                        continue
                    now_s = monotonic()
                    if before_s is not None and before_s - began_s > SETTLING_S:
                        found.append(now_s - before_s)
                    before_s = now_s

    async with aiohttp.ClientSession() as client, asyncio.TaskGroup() as group:
        for number in range(options.callers):
            group.create_task(caller(client, number))
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share lies."""
    return sorted(values)[int(share * (len(values) - 1))]


def window(server: Server, options: argparse.Namespace) -> dict[str, float]:
    """The gaps between tokens while callers keep streams going, and what the API server's process worked."""
    before_s = processor_s(server)
    gaps = asyncio.run(gaps_s(server.url, options, options.window))
    worked_s = processor_s(server) - before_s
    return {
        "p50_s": percentile(gaps, 0.5),
        "p99_s": percentile(gaps, 0.99),
        "processor_s_per_gap": worked_s / len(gaps),
    }


def processor_s(server: Server) -> float:
    """Processor time of the process that answers HTTP; the engine's core is another one."""
    assert server.process is not None
    times = psutil.Process(server.process.pid).cpu_times()
    return times.user + times.system


def windows(sides: Mapping[str, Server], options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Each side's percentiles in every pair."""
    chance, found = Random(options.seed), {side: list[dict[str, float]]() for side in sides}
    for server in sides.values():
        asyncio.run(gaps_s(server.url, options, 2 * SETTLING_S))
    for pair in range(options.pairs):
        for side in chance.sample(list(sides), len(sides)):
            others = [server for name, server in sides.items() if name != side]
            for other in others:
                other.pause()
            try:
                found[side].append(window(sides[side], options))
            finally:
                for other in others:
                    other.resume()
        print(f"pair {pair + 1} of {options.pairs}", file=sys.stderr)
    return found


def compared(on: Sequence[float], off: Sequence[float], *, relative: bool) -> dict[str, float]:
    """The mean difference over pairs and its interval; of ratios where relative."""
    pairs = zip(on, off, strict=True)
    mean, low, high = interval([one / other - 1.0 if relative else one - other for one, other in pairs])
    return {"mean": mean, "low": low, "high": high}


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every figure."""
    starts: dict[str, list[float]] = {"on": [], "off": []}
    with ExitStack() as stack:
        # One that nobody counts: what an engine compiles at its first start is kept for the next.
        with ExitStack() as first:
            started(first, "off", 0, folder, options)
        for number in range(1, options.starts + 1):
            kept, order = {}, ("on", "off") if number % 2 else ("off", "on")
            for side in order:
                with ExitStack() as once:
                    kept[side], seconds = started(once, side, number, folder, options)
                    starts[side].append(seconds)
                    if number == options.starts:
                        stack.push(once.pop_all())
                        kept[side].pause()
            print(f"start {number} of {options.starts}", file=sys.stderr)
        for server in kept.values():
            server.resume()
        command = shown(kept["on"].command)
        tokens = windows(kept, options)
    by_name = {
        name: compared(
            [window[name] for window in tokens["on"]],
            [window[name] for window in tokens["off"]],
            relative=True,
        )
        for name in ("p50_s", "p99_s", "processor_s_per_gap")
    }
    return {
        "engine": options.engine,
        "null": options.null,
        "command": command,
        "starts": options.starts,
        "pairs": options.pairs,
        "window_s": options.window,
        "callers": options.callers,
        "start_s": starts,
        "start_more_s": compared(starts["on"], starts["off"], relative=False),
        "time_per_token_s": tokens,
        "time_per_token_p50_more": by_name["p50_s"],
        "time_per_token_p99_more": by_name["p99_s"],
        "processor_time_per_token_more": by_name["processor_s_per_gap"],
    }


def table(found: Mapping[str, Any]) -> str:
    """The figures in lines for people."""
    start, p50, p99 = (
        found[name] for name in ("start_more_s", "time_per_token_p50_more", "time_per_token_p99_more")
    )
    worked = found["processor_time_per_token_more"]
    spoken = "{name}: {mean:+.2%}, 95 % interval {low:+.2%} to {high:+.2%}{goal}"
    return "\n".join(
        [
            f"start: {start['mean']:+.2f} s, 95 % interval {start['low']:+.2f} to {start['high']:+.2f} s "
            f"(goal: at most {START_GOAL_S:g} s more)",
            spoken.format(name="time per token, p50", goal="", **p50),
            spoken.format(name="time per token, p99", goal=f" (goal: at most {P99_GOAL:.0%} more)", **p99),
            spoken.format(name="processor time of the API server per token", goal="", **worked),
        ]
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).parents[1]
    parser.add_argument(
        "--engines", type=Path, default=root / ".cache/engines", help="folder of built engines"
    )
    parser.add_argument("--engine", choices=list(COMMANDS), default="aphrodite")
    parser.add_argument("--model", type=Path, default=root / "models/src/loadwise_models/balanced")
    parser.add_argument("--starts", type=int, default=3, help="of each side")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--window", type=float, default=4.0, help="seconds of each side in each pair")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--null", action="store_true", help="no side has loadwise: what chance makes")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="also keep the JSON in this file")
    options = parser.parse_args()
    options.engines = options.engines.resolve()
    stop_servers_when_told()
    began_s = monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options)
    found["seconds"] = round(monotonic() - began_s, 1)
    text = json.dumps(found, indent=1)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text if options.json else table(found))


if __name__ == "__main__":
    main()
