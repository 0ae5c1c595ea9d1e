"""Weeks of a whole server in virtual time: without faults at most one page, with one a page in its time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from heapq import merge
from random import Random

import pytest

from loadwise.decision.alert_rules import RULES
from loadwise.ports import Alert
from loadwise.settings import OptimizationConfig
from loadwise.simulation.queueing import MemberModel
from loadwise.simulation.server import SimulatedServer
from loadwise.simulation.workloads import Arrival, Lengths, diurnal, poisson

HOUR_S, DAY_S, WEEK_S = 3600.0, 86_400.0, 7 * 86_400.0
LENGTHS = Lengths(input_median=100, input_p99=500, output_median=60, output_p99=400)
QUALITIES = {"fast": 0.7, "balanced": 0.85, "accurate": 1.0}
# Seconds of a step, and more per request in it. Places fill up first, or tokens come too late first.
DEVICES = {
    "waiting": {"fast": (0.0012, 0.00018), "balanced": (0.0036, 0.00054), "accurate": (0.0108, 0.0018)},
    "tokens": {"fast": (0.001, 0.0003), "balanced": (0.003, 0.001), "accurate": (0.010, 0.004)},
}


NO_EXPERIMENT = {"block_share": 0.0, "conversation_share": 0.0}


def server(
    device: str, strategy: str, experiment: dict[str, float] = NO_EXPERIMENT, **faults: object
) -> SimulatedServer:
    models = {
        name: replace(MemberModel(member_id=name, step_s=step_s, request_s=each_s), **faults)
        for name, (step_s, each_s) in DEVICES[device].items()
    }
    config = OptimizationConfig(
        ensemble_strategy=strategy,
        enable_torch_compile=False,
        experiment=experiment,
    )
    return SimulatedServer(models, QUALITIES, config, seed=1)


def bursts(seed: int, per_s: float, seconds: float) -> Iterator[Arrival]:
    """About one in ten hours, out of nearly nothing."""
    chance, at_s = Random(seed), 0.0
    while (at_s := at_s + chance.expovariate(1.0 / (10.0 * HOUR_S)) + seconds) < WEEK_S - seconds:
        for arrival in poisson(per_s, seconds, chance.getrandbits(32), LENGTHS):
            yield replace(arrival, t_s=at_s + arrival.t_s)


def week(seed: int, per_s: float, burst_per_s: float) -> Iterator[Arrival]:
    """Days and nights of few requests, and bursts of half a minute."""
    days = diurnal(per_s, WEEK_S, seed, LENGTHS, period_s=DAY_S)
    return merge(days, bursts(seed, burst_per_s, 30.0), key=lambda arrival: arrival.t_s)


def pages(alerts: list[Alert]) -> list[Alert]:
    return [alert for alert in alerts if alert.severity == "page" and not alert.resolved]


@pytest.mark.parametrize(
    ("device", "strategy", "burst_per_s"),
    [
        ("tokens", "adaptive", 4.0),
        ("waiting", "adaptive", 6.0),
        ("waiting", "best_of_n", 3.0),
        ("waiting", "weighted_voting", 2.0),
    ],
)
async def test_a_week_without_faults_pages_at_most_once(
    device: str, strategy: str, burst_per_s: float
) -> None:
    served = server(device, strategy)
    await served.serve(week(11, 0.004, burst_per_s))
    await served.until(WEEK_S)
    assert served.requests > 3000
    # The first burst after a cold start is one that nobody was measured for.
    assert [alert.name for alert in pages(served.alerts)] in ([], ["objectives_burning"])
    assert not served.optimizer.cycle.errors


@pytest.mark.parametrize(
    ("device", "strategy", "burst_per_s", "seed"),
    [
        ("tokens", "adaptive", 4.0, 11),
        ("waiting", "adaptive", 6.0, 13),
        ("waiting", "best_of_n", 3.0, 15),
    ],
)
async def test_nor_does_a_week_with_experiments(
    device: str, strategy: str, burst_per_s: float, seed: int
) -> None:
    """With the experiments' defaults: a burst that falls into an unoptimised block ends it."""
    served = server(device, strategy, {"seed": seed})
    await served.serve(week(seed, 0.004, burst_per_s))
    await served.until(WEEK_S)
    assert len(pages(served.alerts)) <= 1
    assert not served.optimizer.cycle.errors


async def test_a_fault_after_quiet_days_pages_in_its_stated_time() -> None:
    begins_s = 3 * DAY_S + 2 * HOUR_S
    served = server("tokens", "adaptive", fails_between_s=((begins_s, WEEK_S),))
    quiet = poisson(0.01, begins_s, 1, LENGTHS)
    await served.serve(quiet)
    assert pages(served.alerts) == []
    (rule,) = [rule for rule in RULES if rule.name == "objectives_burning"]
    for arrival in poisson(0.1, rule.within_s, 2, LENGTHS):
        await served.serve([replace(arrival, t_s=begins_s + arrival.t_s)])
    await served.until(begins_s + rule.within_s)
    assert "objectives_burning" in [alert.name for alert in pages(served.alerts)]
