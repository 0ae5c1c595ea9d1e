"""A build's life beside requests: time to promotion, the same when kept, and what a rebuild disturbs.

    python benchmarks/build_life.py [--model FOLDER] [--seconds 30] [--limit 300] [--out FILE.json]

The torch engine serves the model in this process. First its default build is made on the idle engine; then
the engine starts again and opens what was kept. Last, requests arrive by chance at 70 % of the capacity
measured: alone, then for as long as a forced `max-autotune` rebuild takes (at most `--limit` seconds), then
alone again. In the whole: two minutes, and the rebuild.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from servers import shown

from loadwise.bench.report import machine
from loadwise.clock import SystemClock, iso_utc
from loadwise.compiler import ModelCompiler
from loadwise.compiler.store import PackageStore
from loadwise.compiler.workshop import Workshop
from loadwise.engines.torch import TorchTokenEngine
from loadwise.ports import SamplingParams
from loadwise.settings import OptimizationConfig

PLACES, PROMPT, OUTPUT, SHARE = 8, 16, 48, 0.7
# What was promised: no gap beyond it, and at most this rise of the p99 time per token.
LONGEST_GAP_S, MOST_RISE = 0.050, 0.10
CLOCK = SystemClock()


@dataclass
class Seen:
    """What requests saw: seconds per output token of each, every gap between tokens, and failures."""

    per_token_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Percentiles in milliseconds."""
        return {
            "requests": len(self.per_token_s),
            "failed": len(self.failed),
            "p50_per_token_ms": 1000 * statistics.median(self.per_token_s),
            "p99_per_token_ms": 1000 * percentile(self.per_token_s, 0.99),
            "p99_gap_ms": 1000 * percentile(self.gaps_s, 0.99),
            "longest_gap_ms": 1000 * max(self.gaps_s),
            "gaps_over_50_ms": sum(gap > LONGEST_GAP_S for gap in self.gaps_s),
        }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so many do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Bed:
    """An engine with its compiler, and requests for it."""

    def __init__(self, model: Path, cache: Path, config: OptimizationConfig) -> None:
        store = PackageStore(cache / "builds")
        workshop = Workshop.keeping(["inductor"], store, cache / "building")
        self.compiler = ModelCompiler(config, workshop=workshop, automatic=False)
        self.engine = TorchTokenEngine(
            model,
            clock=CLOCK,
            max_running=PLACES,
            kv_cache_bytes=2**30,
            compile_step=self.compiler.compile_model,
        )
        self.compiler.busy = lambda: bool(self.engine.reading().running_requests)
        self.name = model.name
        self._chance = Random(5)

    async def ask(self, seen: Seen) -> None:
        """One request, from arrival to its last token."""
        prompt = [self._chance.randrange(3, 60) for _ in range(PROMPT)]
        params = SamplingParams(max_tokens=OUTPUT, temperature=0.0, ignore_eos=True)
        times = []
        try:
            async for _ in self.engine.submit(prompt, params):
                times.append(CLOCK.monotonic_s())
        except Exception as error:  # noqa: BLE001 - every failure counts, whatever it is
            seen.failed.append(str(error))
            return
        seen.per_token_s.append((times[-1] - times[0]) / (len(times) - 1))
        seen.gaps_s += [b - a for a, b in itertools.pairwise(times)]

    async def capacity_per_s(self) -> float:
        """Requests per second with every place taken."""
        started_s = CLOCK.monotonic_s()
        await asyncio.gather(*(self.ask(Seen()) for _ in range(4 * PLACES)))
        return 4 * PLACES / (CLOCK.monotonic_s() - started_s)

    async def load(self, per_s: float, until: asyncio.Event) -> Seen:
        """Requests arrive by chance until the event."""
        seen, chance = Seen(), Random(7)
        tasks = []
        while not until.is_set():
            tasks.append(asyncio.create_task(self.ask(seen)))
            await asyncio.sleep(chance.expovariate(per_s))
        await asyncio.gather(*tasks)
        return seen

    async def close(self) -> None:
        """Nothing runs any more."""
        await self.engine.close()
        self.compiler.close()


async def to_promotion_s(model: Path, cache: Path, config: OptimizationConfig) -> tuple[Bed, float]:
    """A started bed whose default build serves, and how long after its start that was."""
    bed, started_s = Bed(model, cache, config), CLOCK.monotonic_s()
    await bed.engine.start()
    await asyncio.to_thread(bed.compiler.wait)
    if bed.compiler.compilation_stats[bed.name]["mode"] is None:
        bed.compiler.build(bed.name, "default")
        await asyncio.to_thread(bed.compiler.wait)
    found = bed.compiler.compilation_stats[bed.name]
    if found["state"] != "promoted":
        raise SystemExit(f"The default build of {bed.name} was not promoted: {found['cause']}")
    return bed, CLOCK.monotonic_s() - started_s


async def alone(bed: Bed, per_s: float, seconds: float) -> Seen:
    """Requests with nothing beside them."""
    ends = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, ends.set)
    return await bed.load(per_s, ends)


async def beside_rebuild(bed: Bed, per_s: float, limit_s: float) -> tuple[Seen, dict[str, Any]]:
    """Requests beside a forced rebuild, and what became of that; it is stopped after `limit_s`."""
    ends, started_s = asyncio.Event(), CLOCK.monotonic_s()
    bed.compiler.build(bed.name, "max-autotune", forced=True)

    async def watch() -> dict[str, Any]:
        finished = await asyncio.to_thread(bed.compiler.wait, limit_s)
        took_s = CLOCK.monotonic_s() - started_s
        bed.compiler.stop_builds()
        await asyncio.to_thread(bed.compiler.wait)
        ends.set()
        return {"finished": finished, "rebuild_s": took_s}

    facts, seen = await asyncio.gather(watch(), bed.load(per_s, ends))
    build = bed.compiler.compilation_stats[bed.name]["builds"]["max-autotune"]
    return seen, facts | {name: build[name] for name in ("state", "cause", "build_time_s", "speedup")}


async def disturbance(bed: Bed, seconds: float, limit_s: float) -> dict[str, Any]:
    """Requests at 70 % of capacity: alone, beside a forced rebuild, alone."""
    capacity = await bed.capacity_per_s()
    per_s = SHARE * capacity
    before = await alone(bed, per_s, seconds)
    beside, rebuild = await beside_rebuild(bed, per_s, limit_s)
    after = await alone(bed, per_s, seconds)
    quiet = Seen(before.per_token_s + after.per_token_s, before.gaps_s + after.gaps_s)
    rise = percentile(beside.per_token_s, 0.99) / percentile(quiet.per_token_s, 0.99) - 1.0
    return {
        "capacity_requests_per_s": capacity,
        "build_share": bed.compiler.config.build_share,
        "alone_before": before.as_json(),
        "beside_rebuild": beside.as_json(),
        "alone_after": after.as_json(),
        "rebuild": rebuild,
        "p99_per_token_rise": rise,
        "kept": {
            "finished": rebuild["finished"],
            "no_request_failed": not (before.failed or beside.failed or after.failed),
            "p99_rise_at_most_10_percent": rise <= MOST_RISE,
            "no_gap_over_50_ms": max(beside.gaps_s) <= LONGEST_GAP_S,
        },
    }


async def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """The three parts."""
    model, config = arguments.model, OptimizationConfig(build_share=arguments.share)
    with tempfile.TemporaryDirectory(prefix="build-life-") as cache:
        bed, first_s = await to_promotion_s(model, Path(cache), config)
        await bed.close()
        bed, again_s = await to_promotion_s(model, Path(cache), config)
        try:
            kept = bed.compiler.compilation_stats[bed.name]["kept"]
            # As a server does: searching what lives as long as it does would only stop requests.
            gc.collect()
            gc.freeze()
            start = {"first_s": first_s, "again_s": again_s, "share": again_s / first_s, "kept": kept}
            start |= {
                "first_under_60_s": first_s < 60.0,
                "again_at_most_30_percent": again_s <= 0.3 * first_s,
            }
            return {
                "to_promotion": start,
                "at_70_percent": await disturbance(bed, arguments.seconds, arguments.limit),
            }
        finally:
            await bed.close()


def main(argv: Sequence[str]) -> None:
    """Runs, prints, saves."""
    from loadwise_models import family

    parser = argparse.ArgumentParser(description="A build's life beside requests.")
    parser.add_argument("--model", type=Path, default=family()["accurate"])
    parser.add_argument("--seconds", type=float, default=30.0, help="of requests without a rebuild")
    parser.add_argument("--share", type=float, default=OptimizationConfig().build_share, help="build_share")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that the rebuild may take")
    parser.add_argument("--out", type=Path, help="save the results as JSON")
    arguments = parser.parse_args(argv)
    before = machine()
    document = {
        "kind": "build-life",
        "command": shown(["python", "benchmarks/build_life.py", *argv]),
        "model": arguments.model.name,
        "machine": before,
        **asyncio.run(measured(arguments)),
        "finished": iso_utc(CLOCK.wall_s()),
    }
    print(json.dumps(document, indent=1))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
