"""Whether the proof of improvement can be trusted: simulated weeks of experiments on a shared queue.

    python benchmarks/proof.py [--weeks 1000] [--out benchmarks/results/proof.json]

A device serves one queue of optimised and unoptimised requests, which differ in the work they cause. Tokens
come slower as it fills (processor sharing), and a queue builds where work comes faster than it is done; a
full queue refuses. Load follows the hour of day, slow random waves and sudden bursts. Time goes in steps of
twenty seconds, all weeks side by side. Unoptimised blocks end at once when the queue is overloaded, and where
they are about to burn the objectives' budget as fast as a page tells of. In some weeks the process dies now
and then: what was in flight is lost, what comes before the next start is never seen, and the comparison goes
on. Intervals are those of `loadwise.decision.improvement`, looked at after every stratum of blocks.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadwise.decision.burn import FAST, REQUESTS_NEEDED, SLOW
from loadwise.decision.improvement import (
    FIRST_LOOK,
    LOST_ENDS,
    SUSPENDED_ENDS,
    Amount,
    Block,
    Difference,
    differences,
    joined,
)
from loadwise.decision.schedule import Schedule
from loadwise.decision.suspension import EARLY

Array = NDArray[np.float64]
# Per step and week: whether the process dies at its end, and whether none listens in it.
Dying = tuple[NDArray[np.bool_], NDArray[np.bool_]]
STEP_S, BLOCK_S, BURN_IN_S, WEEK_S = 20.0, 600.0, 120.0, 7 * 86_400.0
STEPS, BLOCKS, PER_BLOCK = int(WEEK_S / STEP_S), int(WEEK_S / BLOCK_S), int(BLOCK_S / STEP_S)
ARRIVALS_PER_S = 3.4
# Objectives: seconds to the first token, seconds per token; and how far requests scatter (of a logarithm).
FIRST_TOKEN_S, OUTPUT_TOKEN_S, SPREAD = 1.0, 0.05, 0.3
# Seconds to the first token, and per token, on an idle device.
IDLE_FIRST_S, IDLE_TOKEN_S = 0.15, 0.02
# Seconds of work that may wait; more is refused. From `OVERLOADED_S` on, unoptimised blocks end.
QUEUE_S, OVERLOADED_S = 30.0, 12.0
# The share of requests that should be within objectives: the setting's default.
TARGET = 0.99
# A process that died is back after one to six steps. What it had in flight came in its last seconds.
DOWN_STEPS, ANSWER_S = 6, 4.0
# Arrivals of which optimisation keeps nearly all within objectives, and work that costs ten points.
KEPT_PER_S, KEPT_S = 0.8, 0.141


@dataclass(frozen=True)
class Scenario:
    """Work of one request in device seconds by kind, and the share of unoptimised blocks."""

    name: str
    optimised_s: float
    unoptimised_s: float
    share: float
    # Whether unoptimised blocks end where they harm; suspending widens intervals and so hides their faults.
    suspending: bool = True
    # Mean arrivals per second, and deaths of the process per week.
    arrivals_per_s: float = ARRIVALS_PER_S
    deaths: float = 0.0


@dataclass(frozen=True)
class Run:
    """Per block and week, after burn-in: requests and those within objectives; suspended and lost ones."""

    control: NDArray[np.bool_]
    requests: Array
    within: Array
    suspended: Array
    lost: Array
    # Whole weeks' share within objectives of the requests of either kind; nan where there are none.
    share_optimised: Array
    share_unoptimised: Array


class Burn:
    """The windows of `decision.burn` for all weeks at once: rings of sums, back to the longest window."""

    def __init__(self, weeks: int) -> None:
        self._size = int(max(FAST.long_s, SLOW.long_s) / STEP_S) + 1
        # Judged and missed, of all requests and of those of unoptimised blocks, up to each step.
        self._sums = np.zeros((self._size, 4, weeks))
        self._base = np.zeros((4, weeks))
        self._step = 0

    def add(self, came: Array, missed: Array, off: Array, off_missed: Array) -> None:
        """One step's requests."""
        before = self._sums[self._step % self._size]
        self._step += 1
        self._sums[self._step % self._size] = before + np.stack([came, missed, off, off_missed])

    def forget(self, died: NDArray[np.bool_]) -> None:
        """Those weeks' processes died: what they counted is gone."""
        self._base = np.where(died, self._sums[self._step % self._size], self._base)

    def over(self, span_s: float) -> Array:
        """Judged and missed of all, judged and missed of unoptimised ones, per week."""
        back = min(int(span_s / STEP_S), self._step)
        since = np.maximum(self._sums[(self._step - back) % self._size], self._base)
        return np.asarray(self._sums[self._step % self._size] - since)

    def would_page(self, open_requests: Array) -> NDArray[np.bool_]:
        """What `suspension.would_page` says of each week."""
        found, anyway = np.zeros((2, *open_requests.shape), dtype=bool)
        for pair in (FAST, SLOW):
            short, long = self.over(pair.short_s), self.over(pair.long_s)
            limit = EARLY * pair.factor * (1.0 - TARGET)
            burns = (short[0] + open_requests >= REQUESTS_NEEDED) & (long[1] + open_requests >= pair.misses)
            for window in (short, long):
                burns &= window[1] + open_requests > limit * (window[0] + open_requests)
            rest_judged, rest_missed = long[0] - long[2], long[1] - long[3]
            anyway |= (rest_missed >= pair.misses) & (
                rest_missed > pair.factor * (1.0 - TARGET) * np.maximum(rest_judged, 1.0)
            )
            found |= burns
        return np.asarray(found & ~anyway)


def deaths(weeks: int, per_week: float, random: np.random.Generator) -> Dying:
    """Per step and week, whether the process dies at its end, and whether none listens in it."""
    dies = random.random((STEPS, weeks)) < per_week / STEPS
    down = np.zeros((STEPS, weeks), dtype=bool)
    for step, week in np.argwhere(dies):
        down[step + 1 : step + 1 + random.integers(1, DOWN_STEPS + 1), week] = True
    return dies & ~down, down


def loads(weeks: int, per_s: float, random: np.random.Generator) -> NDArray[np.int16]:
    """Arrivals per step and week: hour of day, slow waves (an hour), and bursts of five minutes."""
    daily = 1.0 + 0.6 * np.sin(2 * np.pi * np.arange(STEPS) * STEP_S / 86_400.0)
    arrivals = np.empty((STEPS, weeks), dtype=np.int16)
    wave, burst_s = np.zeros(weeks), np.zeros(weeks)
    kept = np.exp(-STEP_S / 3600.0)
    for step in range(STEPS):
        wave = kept * wave + np.sqrt(1 - kept * kept) * random.standard_normal(weeks)
        burst_s = np.where(random.random(weeks) < STEP_S / 7200.0, 300.0, burst_s - STEP_S)
        rate = per_s * daily[step] * np.exp(0.2 * wave) * np.where(burst_s > 0, 1.8, 1.0)
        arrivals[step] = random.poisson(rate * STEP_S)
    return arrivals


def chance_within(busy: Array, waiting_s: Array, slower: float) -> Array:
    """The share of requests within both objectives at a utilisation (0..1) and seconds of queue."""
    token_s = slower * IDLE_TOKEN_S / np.maximum(1.0 - busy, 0.02)
    first_s = slower * IDLE_FIRST_S + waiting_s
    late = np.maximum(np.log(token_s / OUTPUT_TOKEN_S), np.log(first_s / FIRST_TOKEN_S))
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(1.7 / SPREAD * late, -50.0, 50.0))))


def served(
    scenario: Scenario, arrivals: NDArray[np.int16], control: NDArray[np.bool_], random: np.random.Generator,
    dying: Dying, *, mixed: float | None = None, seeing: bool = False,
) -> Run:  # fmt: skip
    """The weeks served; `mixed` is the share of unoptimised requests instead of blocks.

    With `seeing` nothing is suspended, and nothing lost: also requests that a death cuts off count as they
    would have ended.
    """
    weeks = arrivals.shape[1]
    dies, down = dying
    suspending = scenario.suspending and not seeing
    counted = np.zeros((4, BLOCKS, weeks))
    kinds = np.zeros((2, 2, weeks))
    backlog_s, ended = np.zeros(weeks), np.zeros(weeks, dtype=bool)
    burn, up_s = Burn(weeks), np.full(weeks, np.inf)
    slower = scenario.unoptimised_s / scenario.optimised_s
    for step in range(STEPS):
        block, place = divmod(step, PER_BLOCK)
        if place == 0:
            ended[:] = False
        here = control[block]
        if suspending:
            waiting = np.where(here, backlog_s / scenario.unoptimised_s, 0.0)
            ended |= here & ((backlog_s > OVERLOADED_S) | burn.would_page(waiting))
        came = np.where(down[step], 0.0, arrivals[step])
        off = came * mixed if mixed is not None else np.where(here & ~ended, came, 0.0)
        on = came - off
        work_s = on * scenario.optimised_s + off * scenario.unoptimised_s
        room = np.clip((QUEUE_S - backlog_s + STEP_S) / np.maximum(work_s, 1e-9), 0.0, 1.0)
        waiting_s = np.maximum(0.0, backlog_s + (work_s * room - STEP_S) / 2)
        busy = np.minimum(1.0, (backlog_s + work_s) / STEP_S)
        backlog_s = np.clip(backlog_s + work_s * room - STEP_S, 0.0, QUEUE_S)
        met_on = on * room * chance_within(busy, waiting_s, 1.0)
        met_off = off * room * chance_within(busy, waiting_s, slower)
        kinds += [[on, met_on], [off, met_off]]
        if suspending:
            burn.add(came, came - met_on - met_off, off, off - met_off)
        if place * STEP_S >= BURN_IN_S:
            cut, counts = here & ended, up_s >= BURN_IN_S
            # Requests whose answer a death cuts off: those that came last, of either kind.
            lost = np.where(dies[step] & (not seeing), np.minimum(1.0, (waiting_s + ANSWER_S) / STEP_S), 0.0)
            counted[0, block] += np.where(cut | ~counts, 0.0, came * (1.0 - lost))
            counted[1, block] += np.where(cut | ~counts, 0.0, (met_on + met_off) * (1.0 - lost))
            counted[2, block] += np.where(cut & counts, came, 0.0)
            counted[3, block] += np.where(cut | ~counts, 0.0, came * lost)
        # An empty queue, a process that remembers its blocks, and a burn-in before anything counts.
        gone = dies[step] | down[step]
        up_s, backlog_s = np.where(gone, 0.0, up_s + STEP_S), np.where(gone, 0.0, backlog_s)
        burn.forget(gone)
    # Which of a block's requests were within: by chance, at the block's mean.
    requests = counted[0].astype(np.int64)
    within = random.binomial(requests, np.clip(counted[1] / np.maximum(counted[0], 1.0), 0.0, 1.0))
    shares = kinds[:, 1] / np.maximum(kinds[:, 0], 1.0)
    lost = np.round(counted[3])
    return Run(control, requests.astype(float), within, counted[2], lost, shares[0], shares[1])


def schedules(share: float, weeks: int) -> NDArray[np.bool_]:
    """Which blocks go unoptimised, each week by a seed of its own."""
    plans = [Schedule(block_s=BLOCK_S, burn_in_s=BURN_IN_S, share=share, seed=seed) for seed in range(weeks)]
    return np.array([[plan.control(block) for plan in plans] for block in range(BLOCKS)])


def week_of(run: Run, week: int, length: int) -> list[list[Difference]]:
    """The week's strata at both extremes of what was suspended, and of what was lost where anything was."""
    blocks = [
        Block(
            stratum=number // length,
            control=bool(run.control[number, week]),
            within=Amount(float(run.requests[number, week]), float(run.within[number, week])),
            suspended=int(run.suspended[number, week]),
            lost=int(run.lost[number, week]),
        )
        for number in range(run.control.shape[0])
    ]
    ends = [*SUSPENDED_ENDS, *(LOST_ENDS if run.lost[:, week].any() else ())]
    return [differences(blocks, end) for end in ends]


def truths(all_on: Run, all_off: Run, length: int) -> Array:
    """The true gain from the week's start to the end of each stratum, per week."""
    edges = np.arange(0, BLOCKS - BLOCKS % length, length)
    gained, came = (
        np.cumsum(np.add.reduceat(blocks, edges), axis=0)
        for blocks in (all_on.within - all_off.within, all_on.requests)
    )
    return np.asarray(gained / came)


def judged(run: Run, length: int, truth: Array) -> dict[str, float]:
    """How often a gain was shown at some look, and the truth so far covered at every look and at the last."""
    weeks = run.control.shape[1]
    shown = covered = covered_last = 0
    values, widths = [], []
    for week in range(weeks):
        missed, met, *ends = week_of(run, week, length)
        looks = [
            joined(missed[:n], met[:n], 0, [end[:n] for end in ends])
            for n in range(FIRST_LOOK, len(missed) + 1)
        ]
        found = [look for look in looks if look is not None]
        true = truth[FIRST_LOOK - 1 :, week].tolist()
        inside = [look.low <= at <= look.high for look, at in zip(found, true, strict=False)]
        shown += any(look.low > 0.0 for look in found)
        covered += all(inside)
        covered_last += inside[-1]
        values.append(found[-1].value)
        widths.append(found[-1].high - found[-1].low)
    return {
        "gain_shown_at_some_look": shown / weeks,
        "truth_covered_at_every_look": covered / weeks,
        "truth_covered_at_the_end": covered_last / weeks,
        "mean_estimate": float(np.mean(values)),
        "mean_width_at_the_end": float(np.mean(widths)),
    }


def simulate(scenario: Scenario, weeks: int, seed: int) -> dict[str, Any]:
    """One scenario: the experiment, the truth (each week served wholly either way), the naive estimate."""
    random = np.random.default_rng(seed)
    arrivals = loads(weeks, scenario.arrivals_per_s, random)
    dying = deaths(weeks, scenario.deaths, random)
    control = schedules(scenario.share, weeks)
    run = served(scenario, arrivals, control, random, dying)
    all_on = served(scenario, arrivals, np.zeros_like(control), random, dying, seeing=True)
    all_off = served(scenario, arrivals, np.ones_like(control), random, dying, seeing=True)
    length = Schedule(block_s=1.0, burn_in_s=0.0, share=scenario.share).stratum.denominator
    truth = truths(all_on, all_off, length)
    naive = served(
        scenario, arrivals, np.zeros_like(control), random, dying, mixed=scenario.share, seeing=True
    )
    naive_gain = naive.share_optimised - naive.share_unoptimised
    offered = run.requests.sum() + run.suspended.sum() + run.lost.sum()
    return {
        "name": scenario.name,
        "weeks": weeks,
        "control_share": scenario.share,
        "share_within_optimised": float(all_on.share_optimised.mean()),
        "true_gain": float(truth[-1].mean()),
        "control_requests_suspended": float(run.suspended.sum() / (control.mean() * offered)),
        "deaths_per_week": scenario.deaths,
        "requests_lost": float(run.lost.sum() / offered),
        **judged(run, length, truth),
        "naive_request_level_estimate": float(naive_gain.mean()),
        "naive_bias": float((naive_gain - truth[-1]).mean()),
    }


SCENARIOS = (
    Scenario("equal policies", 0.100, 0.100, 0.1),
    Scenario("a known gain, a tenth of blocks", 0.100, 0.115, 0.1),
    Scenario("a gain of ten points, a fifth of blocks", 0.100, 0.1073, 0.2),
    Scenario("equal policies, nothing suspended", 0.100, 0.100, 0.1, suspending=False),
    Scenario("a known gain, nothing suspended", 0.100, 0.115, 0.1, suspending=False),
    # Objectives that optimisation keeps, so that unoptimised blocks alone burn the budget.
    Scenario("equal policies, objectives kept", 0.100, 0.100, 0.1, arrivals_per_s=KEPT_PER_S),
    Scenario("a gain of ten points, objectives kept", 0.100, KEPT_S, 0.2, arrivals_per_s=KEPT_PER_S),
    Scenario("equal policies, two deaths a day", 0.100, 0.100, 0.1, deaths=14.0),
    Scenario("a gain of ten points, two deaths a day", 0.100, 0.1073, 0.2, deaths=14.0),
)


def main() -> None:
    """Prints what was simulated, and saves it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weeks", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        seeds = range(asked.seed, asked.seed + len(SCENARIOS))
        found = list(pool.map(simulate, SCENARIOS, repeat(asked.weeks), seeds))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    made = {
        "command": f"python benchmarks/proof.py --weeks {asked.weeks} --seed {asked.seed}",
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "scenarios": found,
    }
    print(json.dumps(made, indent=1))
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
