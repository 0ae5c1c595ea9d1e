"""What all monitoring costs: CPU seconds per 1,000 requests and memory, with and without, in pairs.

Two servers with the models that ship with loadwise run side by side, and `auto` answers from the same member
in both, so that they do the same work. In each pair both answer the same number of requests, in short slices
of random order while the other is paused: what the machine does meanwhile falls on both alike. The watched
one is also scraped every 15 seconds and its page is open. The figure is the mean over pairs of
(on - off) / off of engine and gateway together, with its 95 % interval (Student's t). A server that was
paused does at once what fell due meanwhile, so that slices of less than some seconds show more than a running
server spends.

Most of what differs from slice to slice is how requests happened to fall into the engine's batches: the same
tokens take more steps or fewer. The steps are counted on both sides, alike, and each slice's time is taken at
the mean number of steps (a control variate: the slope is found within each side, where monitoring does not
differ). Beside it stand the figure without that, and how many more steps the watched side took: what it adds
by them, such a correction would hide.

    python benchmarks/monitoring_overhead.py            # 20 pairs of 2 x 1,000 requests, about 15 minutes
    python benchmarks/monitoring_overhead.py --json     # the same as JSON, as kept in benchmarks/results/
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, NamedTuple

import aiohttp
from servers import Server, free_port, stop_servers_when_told

CPU_GOAL = 0.01
MEMORY_GOAL = 0.05
SCRAPE_EVERY_S = 15.0
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 14: 2.145, 19: 2.093, 29: 2.045}


class Slice(NamedTuple):
    """CPU seconds of one slice, and the steps that the engine took for it."""

    cpu_s: float
    steps: int

    def since(self, before: Slice) -> Slice:
        """What was used between two readings."""
        return Slice(self.cpu_s - before.cpu_s, self.steps - before.steps)


@dataclass
class Side:
    """One of the two servers, and the slices of each pair."""

    name: str
    server: Server
    steps: Path
    pairs: list[list[Slice]]

    @classmethod
    def made(cls, name: str, folder: Path, *flags: str) -> Side:
        """A server of its own process, with or without monitoring."""
        port, steps = free_port(), folder / f"{name}.steps"
        script = str(Path(__file__).with_name("unmonitored.py"))
        command = [sys.executable, script, "--port", str(port), "--state-dir", str(folder / name)]
        url, log = f"http://127.0.0.1:{port}", folder / f"{name}.log"
        command += ["--steps", str(steps), *flags]
        return cls(name, Server(name, command, url, log, {}, "/health/readiness"), steps, [])

    def used(self) -> Slice:
        """What it used so far."""
        return Slice(self.server.exact_cpu_s(), int.from_bytes(self.steps.read_bytes(), "little"))

    def cpu_s(self, slope: float = 0.0, steps: float = 0.0) -> list[float]:
        """CPU seconds of each pair; with `slope` seconds a step, as if each slice had taken `steps`."""
        return [sum(cut.cpu_s - slope * (cut.steps - steps) for cut in pair) for pair in self.pairs]


def seconds_a_step(sides: Sequence[Side]) -> tuple[float, float]:
    """How CPU seconds go with an engine's steps from slice to slice within each side, and the mean steps."""
    shared, spread = 0.0, 0.0
    for side in sides:
        cuts = [cut for pair in side.pairs for cut in pair]
        cpu_s, steps = statistics.mean(cut.cpu_s for cut in cuts), statistics.mean(cut.steps for cut in cuts)
        shared += sum((cut.steps - steps) * (cut.cpu_s - cpu_s) for cut in cuts)
        spread += sum((cut.steps - steps) ** 2 for cut in cuts)
    everyone = [cut.steps for side in sides for pair in side.pairs for cut in pair]
    return (shared / spread if spread else 0.0), statistics.mean(everyone)


async def ask(url: str, count: int, callers: int, tokens: int) -> None:
    """So many streamed completions of equal length by a closed loop of callers; a failed one ends it all."""
    left = iter(range(count))
    body = {
        "model": "auto",
        "prompt": "def read_lines(path):\n",
        "max_tokens": tokens,
        "min_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }

    async def caller(client: aiohttp.ClientSession) -> None:
        for _ in left:
            async with client.post(url + "/v1/completions", json=body) as answer:
                if answer.status != 200:
                    raise SystemExit(f"status {answer.status}: {(await answer.text())[:300]}")
                async for _chunk in answer.content.iter_any():
                    pass

    async with aiohttp.ClientSession() as client, asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller(client))


async def watch(url: str, stack: AsyncExitStack) -> None:
    """The page is open and Prometheus scrapes, until the stack closes; a paused server answers later."""
    client = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)))

    async def scrape() -> None:
        while True:
            async with client.get(url + "/metrics") as answer:
                await answer.read()
            await asyncio.sleep(SCRAPE_EVERY_S)

    async def page() -> None:
        while True:
            async with client.get(url + "/v1/optimization/events") as answer:
                async for _chunk in answer.content.iter_any():
                    pass

    for task in (asyncio.create_task(scrape()), asyncio.create_task(page())):
        stack.callback(task.cancel)


async def slices(sides: Sequence[Side], options: argparse.Namespace, chance: Random) -> None:
    """One pair: one side is asked at a time, the other is paused."""
    for side in sides:
        side.pairs.append([])
    for _ in range(options.slices):
        for side in chance.sample(list(sides), len(sides)):
            paused = [other.server for other in sides if other is not side]
            for server in paused:
                server.pause()
            try:
                before = side.used()
                count = options.requests // options.slices
                await ask(side.server.url, count, options.callers, options.tokens)
                side.pairs[-1].append(side.used().since(before))
            finally:
                for server in paused:
                    server.resume()


async def compare(sides: Sequence[Side], options: argparse.Namespace) -> None:
    """Every pair, each of slices in an order of their own."""
    chance = Random(options.seed)
    for side in sides:
        await ask(side.server.url, options.requests // 4 + 1, options.callers, options.tokens)
    async with AsyncExitStack() as stack:
        await watch(next(side.server.url for side in sides if side.name == "on"), stack)
        for pair in range(options.pairs):
            await slices(sides, options, chance)
            print(f"pair {pair + 1} of {options.pairs}", file=sys.stderr)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval; no interval from one value."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, float("-inf"), float("inf")
    degrees = max(known for known in T95 if known <= len(values) - 1)
    reach = T95[degrees] * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - reach, mean + reach


def more(on: Sequence[float], off: Sequence[float]) -> dict[str, float]:
    """By what part the first is more than the second: the mean over pairs, and its interval."""
    mean, low, high = interval([one / other - 1.0 for one, other in zip(on, off, strict=True)])
    return {"mean": mean, "low": low, "high": high}


def result(sides: Sequence[Side], memory: dict[str, int], options: argparse.Namespace) -> dict[str, Any]:
    """The figures, and whether they keep what was promised."""
    on, off = sides
    slope, steps = seconds_a_step(sides)
    asked = options.requests // options.slices * options.slices
    cpu = more(on.cpu_s(slope, steps), off.cpu_s(slope, steps))
    counted = [[float(sum(cut.steps for cut in pair)) for pair in side.pairs] for side in sides]
    held = memory["on"] / memory["off"] - 1.0
    return {
        "pairs": options.pairs,
        "requests_per_side": options.requests,
        "slices": options.slices,
        "callers": options.callers,
        "tokens": options.tokens,
        "cpu_s_per_1000_requests": {
            side.name: 1000.0 * statistics.mean(side.cpu_s(slope, steps)) / asked for side in sides
        },
        "cpu_overhead_fraction": cpu,
        "cpu_overhead_fraction_as_it_fell": more(on.cpu_s(), off.cpu_s()),
        "engine_steps_more_fraction": more(*counted) if all(map(all, counted)) else None,
        "cpu_s_per_engine_step": slope,
        "memory_bytes": memory,
        "memory_overhead_fraction": held,
        "cpu_goal_met": cpu["high"] < CPU_GOAL,
        "memory_goal_met": held < MEMORY_GOAL,
        "by_pair": {side.name: [[*map(tuple, pair)] for pair in side.pairs] for side in sides},
    }


def table(found: dict[str, Any]) -> str:
    """The figures in lines for people."""
    cpu, spent = found["cpu_overhead_fraction"], found["cpu_s_per_1000_requests"]
    memory, raw = found["memory_bytes"], found["cpu_overhead_fraction_as_it_fell"]
    return "\n".join(
        [
            f"CPU seconds per 1,000 requests: {spent['on']:.3f} with, {spent['off']:.3f} without",
            f"overhead {cpu['mean']:+.2%}, 95 % interval {cpu['low']:+.2%} to {cpu['high']:+.2%} "
            f"(goal: upper end below {CPU_GOAL:.0%})",
            f"as it fell {raw['mean']:+.2%}, {raw['low']:+.2%} to {raw['high']:+.2%}",
            f"memory {memory['on'] / 1e6:.0f} MB with, {memory['off'] / 1e6:.0f} MB without: "
            f"{found['memory_overhead_fraction']:+.2%} (goal: below {MEMORY_GOAL:.0%})",
        ]
    )


def main() -> None:
    """Measures and prints; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--requests", type=int, default=1000, help="of each side in each pair")
    parser.add_argument("--slices", type=int, default=8, help="of each side in each pair")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="also keep the JSON in this file")
    options = parser.parse_args()
    stop_servers_when_told()
    began = monotonic()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sides = [
            Side.made(name, Path(folder), *flags) for name, flags in (("on", ()), ("off", ("--silent",)))
        ]
        for side in sides:
            stack.enter_context(side.server)
        asyncio.run(compare(sides, options))
        memory = {side.name: side.server.memory_bytes() for side in sides}
    found = {**result(sides, memory, options), "seconds": round(monotonic() - began, 1)}
    text = json.dumps(found, indent=1)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text if options.json else table(found))
    sys.exit(not (found["cpu_goal_met"] and found["memory_goal_met"]))


if __name__ == "__main__":
    main()
