"""A build's life beside requests: time to promotion, the same when kept, and what a rebuild disturbs.

    python benchmarks/build_life.py [--model FOLDER] [--seconds 120] [--limit 900] [--out FILE.json]

The torch engine serves the model in this process. First its default build is made on the idle engine; then
the engine starts again and opens what was kept. Last, requests arrive by chance at 70 % of the capacity
measured: alone, then for as long as a forced `max-autotune` rebuild takes (at most `--limit` seconds), then
alone again, served by the default build throughout. In the whole: five minutes, and half as long again as the
rebuild takes.

The slowest hundredth of requests are those that came in a crowd, so the same arrivals, half a minute of them,
come again and again in all three parts. A machine's neighbours may be louder for minutes, so that beside the
rebuild every third half minute holds it still (a hundredth of its time, the least there is): what it costs
requests is told from its neighbours, by a bootstrap over half minutes, and beside it from the parts alone.
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
from collections.abc import Callable, Sequence
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
# Seconds after which the same arrivals come again, and resamplings of such stretches.
CYCLE_S, RESAMPLINGS = 30.0, 2000
LEAST_SHARE, HELD_EVERY = 0.01, 3
# What was promised: no gap beyond it, and at most this rise of the p99 time per token.
LONGEST_GAP_S, MOST_RISE = 0.050, 0.10
CLOCK = SystemClock()


@dataclass(eq=False)
class Seen:
    """What requests saw: seconds per output token of each, every gap between tokens, and failures."""

    per_token_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, other: Seen) -> None:
        """What `other` saw, too."""
        self.per_token_s += other.per_token_s
        self.gaps_s += other.gaps_s
        self.failed += other.failed

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


class Stretch(Seen):
    """Whole cycles of arrivals, and what each saw; the last may have been cut off."""

    def __init__(self, cycles: Sequence[Seen]) -> None:
        super().__init__()
        self.cycles = list(cycles)
        for cycle in self.cycles:
            self.add(cycle)


def rise_of(beside: Sequence[Seen], alone: Sequence[Seen], share: float) -> float:
    """By how much a percentile of the time per token is higher beside than alone."""
    pooled = [[value for cycle in cycles for value in cycle.per_token_s] for cycles in (beside, alone)]
    return percentile(pooled[0], share) / percentile(pooled[1], share) - 1.0


def interval_of(beside: Sequence[Seen], alone: Sequence[Seen], share: float) -> tuple[float, float]:
    """95 % of the rises of resampled cycles."""
    chance = Random(11)
    rises = [
        rise_of(chance.choices(beside, k=len(beside)), chance.choices(alone, k=len(alone)), share)
        for _ in range(RESAMPLINGS)
    ]
    return percentile(rises, 0.025), percentile(rises, 0.975)


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
        self.held = False
        self.compiler.busy = lambda: self.held or bool(self.engine.reading().running_requests)
        self.name = model.name
        self._chance = Random(5)

    def hold(self, held: bool, share: float) -> None:
        """The build has its share of the time, or as good as none."""
        self.held = held
        self.compiler.config = self.compiler.config.changed({"build_share": LEAST_SHARE if held else share})

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

    async def load(
        self, per_s: float, until: asyncio.Event, begins: Callable[[int], None] = lambda cycle: None
    ) -> Stretch:
        """Requests arrive by chance until the event, in cycles that are alike; `begins` is told each one."""
        cycles, tasks = list[Seen](), list[asyncio.Task[None]]()
        loop = asyncio.get_running_loop()

        async def one(cycle: Seen) -> None:
            seen = Seen()
            await self.ask(seen)
            cycle.add(seen)

        next_s = loop.time()
        while not until.is_set():
            begins(len(cycles))
            chance, ends_s = Random(7), next_s + CYCLE_S
            cycles.append(Seen())
            while next_s < ends_s and not until.is_set():
                await asyncio.sleep(next_s - loop.time())
                tasks.append(asyncio.create_task(one(cycles[-1])))
                next_s += chance.expovariate(per_s)
            next_s = ends_s
        await asyncio.gather(*tasks)
        return Stretch(cycles)

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


async def alone(bed: Bed, per_s: float, seconds: float) -> Stretch:
    """Requests with nothing beside them."""
    ends = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, ends.set)
    return await bed.load(per_s, ends)


async def beside_rebuild(bed: Bed, per_s: float, limit_s: float) -> tuple[Stretch, Stretch, dict[str, Any]]:
    """Requests beside a forced rebuild, those while it was held still, and what became of it.

    It is stopped after `limit_s`.
    """
    ends, started_s, share = asyncio.Event(), CLOCK.monotonic_s(), bed.compiler.config.build_share
    bed.compiler.build(bed.name, "max-autotune", forced=True)

    async def watch() -> dict[str, Any]:
        finished = await asyncio.to_thread(bed.compiler.wait, limit_s)
        took_s = CLOCK.monotonic_s() - started_s
        bed.compiler.stop_builds()
        await asyncio.to_thread(bed.compiler.wait)
        ends.set()
        return {"finished": finished, "rebuild_s": took_s}

    facts, seen = await asyncio.gather(
        watch(), bed.load(per_s, ends, lambda cycle: bed.hold(cycle % HELD_EVERY == HELD_EVERY - 1, share))
    )
    bed.hold(False, share)
    held = seen.cycles[HELD_EVERY - 1 :: HELD_EVERY]
    facts["held_s"] = CYCLE_S * len(held)
    build = bed.compiler.compilation_stats[bed.name]["builds"]["max-autotune"]
    facts |= {name: build[name] for name in ("state", "cause", "build_time_s", "speedup")}
    return Stretch([cycle for cycle in seen.cycles if cycle not in held]), Stretch(held), facts


async def disturbance(bed: Bed, seconds: float, limit_s: float) -> dict[str, Any]:
    """Requests at 70 % of capacity: alone, beside a forced rebuild, alone."""
    await bed.capacity_per_s()
    capacity = await bed.capacity_per_s()
    per_s = SHARE * capacity
    await alone(bed, per_s, CYCLE_S)
    before = await alone(bed, per_s, seconds)
    beside, held, rebuild = await beside_rebuild(bed, per_s, limit_s)
    after = await alone(bed, per_s, seconds)
    rises = {
        name: {
            place: {
                "rise": rise_of(beside.cycles, against, share),
                "interval": interval_of(beside.cycles, against, share),
            }
            for place, against in (("held", held.cycles), ("alone", before.cycles + after.cycles))
        }
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }
    return {
        "capacity_requests_per_s": capacity,
        "build_share": bed.compiler.config.build_share,
        "alone_before": before.as_json(),
        "beside_rebuild": beside.as_json(),
        "rebuild_held": held.as_json(),
        "alone_after": after.as_json(),
        "rebuild": rebuild,
        "per_token": rises,
        "kept": {
            "finished": rebuild["finished"],
            "no_request_failed": not (before.failed or beside.failed or held.failed or after.failed),
            "p99_rise_at_most_10_percent": rises["p99"]["held"]["rise"] <= MOST_RISE,
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
    parser.add_argument("--seconds", type=float, default=120.0, help="of requests without a rebuild, twice")
    parser.add_argument("--share", type=float, default=OptimizationConfig().build_share, help="build_share")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds that the rebuild may take")
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
