"""Every alert is fired by its fault within its stated time, and a healthy week is silent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from loadwise.decision.alert_facts import Health, Severity
from loadwise.decision.alert_rules import RULES
from loadwise.decision.alerting import conditions
from loadwise.decision.facts import Ending, EngineReading, Policy
from loadwise.decision.improvement import Improvement
from loadwise.decision.silence import Silence
from loadwise.errors import RequestError
from loadwise.telemetry import names
from loadwise.telemetry.alerts import AlertBook
from loadwise.telemetry.monitoring import Monitoring
from loadwise.telemetry.objectives import ObjectiveCounts

WITHIN_S = {rule.name: rule.within_s for rule in RULES}


class Running:
    """A server with traffic: every second the loop looks, and the watch evaluates."""

    def __init__(self, server: Any) -> None:
        self.server = server
        server.director.running = True
        self.ending = Ending.SUCCEEDED
        self.facts: dict[str, Any] = {}
        self.member: str | None = None
        self.loop = True
        self._number = 0

    def ask(self) -> None:
        facts = {} if self.member is None else {"model": self.member}
        self._number += 1
        # Where nobody answers, most are refused.
        with suppress(RequestError):
            dispatch = self.server.dispatch(self._number, **facts)
            self.server.end(dispatch, self.ending, **self.facts)

    async def second(self, *, traffic: bool = True) -> None:
        self.server.clock.advance(1.0)
        if traffic:
            self.ask()
        if self.loop:
            await self.server.optimizer.cycle.probe()
        self.server.optimizer.watch.evaluate()

    def fired(self) -> list[str]:
        return [alert.name for alert in self.server.heard.alerts if not alert.resolved]


async def healthy(run: Running, seconds: int = 30) -> None:
    for _ in range(seconds):
        await run.second()
    assert run.fired() == []


async def errors(run: Running) -> None:
    run.ending, run.facts = Ending.FAILED, {"status": 500, "output_tokens": 0}


async def slow(run: Running) -> None:
    run.facts = {"total_s": 2.0}


async def one_member_fails(run: Running) -> None:
    run.ending, run.facts, run.member = Ending.FAILED, {"status": 500}, "fast"


async def queue_grows(run: Running) -> None:
    def waiting() -> list[EngineReading]:
        now_s = run.server.clock.monotonic_s()
        figures = {"running_requests": 4, "waiting_requests": 40, "capacity_requests": 4}
        return [EngineReading(replica_id="elsewhere", read_s=now_s, **figures)]

    run.server.optimizer.cycle.parts.client = waiting


async def broken() -> EngineReading:
    raise ConnectionError("no route")


async def one_engine_is_not_read(run: Running) -> None:
    run.server.engines["fast/0"].observe = broken


async def no_engine_is_read(run: Running) -> None:
    for engine in run.server.engines.values():
        engine.observe = broken


async def the_loop_hangs(run: Running) -> None:
    run.loop = False


def counts_tokens(run: Running, *names: str) -> None:
    """The members' engines say how many tokens come: none."""

    def silent(replica_id: str) -> Callable[[], Awaitable[EngineReading]]:
        async def observe() -> EngineReading:
            now_s = run.server.clock.monotonic_s()
            return EngineReading(replica_id=replica_id, read_s=now_s, output_tokens_per_s=0.0)

        return observe

    for name in names:
        run.server.engines[f"{name}/0"].observe = silent(f"{name}/0")


async def a_member_hangs(run: Running) -> None:
    counts_tokens(run, "fast")
    run.server.dispatch(10**6, model="fast")
    run.member = "accurate"


async def a_replica_hangs(run: Running) -> None:
    counts_tokens(run, "fast")
    for number in range(2):
        dispatch = run.server.dispatch(10**6 + number, model="fast")
        if dispatch.replica_id == "fast/1":
            run.server.end(dispatch)
    run.member = "accurate"


async def a_member_hangs_that_may_not_leave(run: Running) -> None:
    await a_member_hangs(run)
    ensemble = run.server.optimizer.ensemble_manager
    belief = ensemble.beliefs["balanced"]
    ensemble.beliefs["balanced"] = belief._replace(health=type(belief.health)("out"), probe_at_s=1e9)


async def gains_nothing(run: Running) -> None:
    small = Improvement(
        value=0.01, low=-0.02, high=0.04, optimised_fraction=0.51, unoptimised_fraction=0.5,
        if_suspended_within=0.01, strata=12, requests=900,
    )  # fmt: skip
    run.server.optimizer.recorder.improvement = lambda: small


async def a_build_fails(run: Running) -> None:
    build = {"state": "failed", "failures": 1, "cause": "g++ is missing"}
    stats = {"m": {"builds": {"default": build}}}
    compiler = run.server.optimizer.model_compiler
    compiler.__class__ = type("Failing", (type(compiler),), {"compilation_stats": stats})


async def a_configuration_regresses(run: Running) -> None:
    configurations = run.server.optimizer.configurations
    for _ in range(60):
        configurations.count(0.5, within_objectives=True)
    await configurations.apply(configurations.current.changed({"hysteresis": 0.1}))
    for _ in range(60):
        configurations.count(0.5, within_objectives=False)
    await configurations.judge()


async def a_rollout_does_harm(run: Running) -> None:
    rollouts = run.server.optimizer.recorder.experiments.rollouts
    began_s = run.server.clock.monotonic_s()

    def as_json(now_s: float) -> list[dict[str, Any]]:
        return [{"route": "auto", "key": None, "harm": "more_errors", "seconds": now_s - began_s}]

    rollouts.as_json = as_json


async def the_host_cannot_be_read(run: Running) -> None:
    run.server.optimizer.cycle.parts.tuner.read_host = lambda: 1 / 0


async def the_journal_drops(run: Running) -> None:
    class Full:
        lost, fault, queue = 7, None, ()

        def keep(self, *_: object) -> None: ...

    run.server.optimizer.chronicle.journal = Full()


class Collector:
    """A monitoring system beside us, which fails once it is `broken`."""

    broken = False

    def record_request_start(self) -> int:
        return 1

    def record_request_end(self, number: int, success: bool, response_time_ms: float) -> None: ...

    def get_current_metrics(self) -> dict[str, float]:
        if self.broken:
            raise ConnectionError("the collector is down")
        return {"active_requests": 1, "throughput_rps": 1.0, "avg_response_time_ms": 300.0, "error_rate": 0.0}


async def monitoring_fails(run: Running) -> None:
    collector = Collector()
    run.server.optimizer.recorder.monitoring = Monitoring(collector, run.server.clock)
    await healthy(run, 120)
    collector.broken = True


FAULTS: dict[str, Callable[[Running], Awaitable[None]]] = {
    "high_error_rate": errors,
    "excessive_latency": slow,
    "ensemble_degradation": one_member_fails,
    "queue_saturation": queue_grows,
    "stale_engine_metrics": one_engine_is_not_read,
    "sensors_stale": no_engine_is_read,
    "loop_stale": the_loop_hangs,
    "silent_member": a_member_hangs,
    "silent_replica": a_replica_hangs,
    "silent_member_serving": a_member_hangs_that_may_not_leave,
    "low_optimization_effectiveness": gains_nothing,
    "compilation_failure": a_build_fails,
    "configuration_rolled_back": a_configuration_regresses,
    "rollout_taken_back": a_rollout_does_harm,
    "optimizer_fault": the_host_cannot_be_read,
    "journal_losing": the_journal_drops,
    "monitoring_failed": monitoring_fails,
}
# What a fault needs of its server.
SERVERS: dict[str, dict[str, Any]] = {"silent_replica": {"replicas": 2}}
# Those of whole hours and days have tests of their own below.
SLOW = {"objectives_burning", "objectives_spent"}


def test_every_alert_has_its_fault() -> None:
    assert set(FAULTS) | SLOW == {rule.name for rule in RULES}


@pytest.mark.parametrize("name", list(FAULTS))
async def test_a_fault_is_told_within_its_stated_time(make: Any, name: str) -> None:
    run = Running(make(**SERVERS.get(name, {})))
    await healthy(run)
    await FAULTS[name](run)
    for _ in range(round(WITHIN_S[name])):
        await run.second()
        if name in run.fired():
            break
    assert name in run.fired()


async def test_burning_objectives_page_within_ten_minutes_after_hours_of_health(make: Any) -> None:
    run = Running(make())
    for minute in range(120):
        for _ in range(12):
            run.server.clock.advance(5.0)
            run.ask()
        if minute % 10 == 0:
            await run.second(traffic=False)
    assert run.fired() == []
    run.ending, run.facts = Ending.FAILED, {"status": 500, "output_tokens": 0}
    for _ in range(round(WITHIN_S["objectives_burning"] / 5.0)):
        run.server.clock.advance(4.0)
        await run.second()
    (page,) = [a for a in run.server.heard.alerts if a.name == "objectives_burning"]
    assert (page.severity, page.subject) == ("page", "auto")
    assert page.evidence["short_judged"] >= 20


async def test_a_budget_that_is_slowly_spent_is_told_within_a_day_after_days_of_health(make: Any) -> None:
    run = Running(make())

    async def minutes(count: int) -> None:
        for _ in range(count // 5):
            run.server.clock.advance(299.0)
            await run.second()

    await minutes(3 * 24 * 60)
    assert run.fired() == []
    for _ in range(24 * 60 // 100):
        await errors(run)
        await minutes(5)
        run.ending, run.facts = Ending.SUCCEEDED, {}
        await minutes(95)
    (told,) = [a for a in run.server.heard.alerts if a.name == "objectives_spent" and not a.resolved]
    assert (told.severity, told.subject) == ("ticket", "auto")
    assert "objectives_burning" not in run.fired()


async def test_a_silent_member_is_taken_out_within_half_a_minute_and_is_no_page(make: Any) -> None:
    run = Running(make())
    await healthy(run)
    await a_member_hangs(run)
    for _ in range(30):
        await run.second()
    ensemble = run.server.optimizer.ensemble_manager
    assert ensemble.members_out() == ["fast"]
    for _ in range(60):
        await run.second()
    assert "silent_member" in run.fired()
    assert "silent_member_serving" not in run.fired()
    run.member = None
    for number in range(50):
        dispatch = run.server.dispatch(2000 + number)
        assert dispatch.member_id != "fast"
        run.server.end(dispatch)


async def test_all_members_silent_together_stay_and_page(make: Any) -> None:
    run = Running(make())
    await healthy(run)
    for number, name in enumerate(("fast", "balanced", "accurate")):
        counts_tokens(run, name)
        run.server.dispatch(5000 + number, model=name)
    for _ in range(45):
        await run.second(traffic=False)
    assert run.server.optimizer.ensemble_manager.members_out() == []
    assert run.fired().count("silent_member_serving") == 3


async def test_a_silent_member_returns_by_probes_on_a_ramp(make: Any) -> None:
    run = Running(make())
    await healthy(run)
    counts_tokens(run, "fast")
    hung = run.server.dispatch(10**6, model="fast")
    run.member = "accurate"
    for _ in range(30):
        await run.second()
    run.server.end(hung, Ending.FAILED, status=504, output_tokens=None, time_to_first_token_s=None)
    run.member, seen = "fast", []
    for _ in range(60):
        await run.second()
        seen.append(run.server.optimizer.ensemble_manager.beliefs["fast"].health.value)
    assert seen[0] == "out"
    assert list(dict.fromkeys(seen)) == ["out", "ramping", "healthy"]


async def test_a_slow_member_with_a_long_prompt_is_out_within_half_a_minute_of_its_last_token(
    make: Any,
) -> None:
    run = Running(make())
    await healthy(run)
    clock, ensemble = run.server.clock, run.server.optimizer.ensemble_manager
    last_s = clock.monotonic_s() + 1.0

    async def observe() -> EngineReading:
        now_s = clock.monotonic_s()
        # As embedded engines do: the mean of ten seconds, and when the last token came.
        speed = max(0.0, last_s + 10.0 - now_s)
        return EngineReading(
            replica_id="fast/0", read_s=now_s, output_tokens_per_s=speed, last_token_s=min(now_s, last_s)
        )

    run.server.engines["fast/0"].observe = observe
    run.server.dispatch(10**6, model="fast", prompt_tokens=900)
    ensemble.beliefs["fast"] = ensemble.beliefs["fast"]._replace(trend=50.0)
    run.member = "accurate"
    while clock.monotonic_s() < last_s + 20.0:
        await run.second()
    # So slow a member may take a while.
    assert ensemble.members_out() == []
    while clock.monotonic_s() < last_s + 30.0:
        await run.second()
    assert ensemble.members_out() == ["fast"]
    assert "silent_member_serving" not in run.fired()


@pytest.mark.parametrize(
    ("stream", "figures", "silent"),
    [
        (False, {"tokens_counted_live": False}, False),
        (True, {"tokens_counted_live": False, "output_tokens_per_s": 0.0}, True),
        (True, {}, False),
        (False, {"tokens_counted_live": True, "output_tokens_per_s": 0.0}, True),
        (True, {"tokens_counted_live": True, "output_tokens_per_s": 40.0}, False),
    ],
)
async def test_a_member_is_silent_only_where_its_tokens_could_be_seen(
    make: Any, stream: bool, figures: dict[str, Any], silent: bool
) -> None:
    server = make()
    run = Running(server)
    engine = server.engines["fast/0"]

    async def observe() -> EngineReading:
        return EngineReading(replica_id="fast/0", read_s=server.clock.monotonic_s(), **figures)

    engine.observe = observe
    server.dispatch(0, model="fast", stream=stream)
    for _ in range(40):
        await run.second(traffic=False)
    assert ("silent_member" in run.fired()) is silent


async def test_names_that_clients_invent_become_no_series(make: Any) -> None:
    server = make()
    telemetry = server.optimizer.telemetry

    def series() -> int:
        return sum(len(family.samples) for family in telemetry.collect())

    server.end(server.dispatch(0))
    before = series()
    for number in range(5000):
        with pytest.raises(RequestError):
            server.dispatch(number, model=f"invented-{number}")
    # One status more; of a million it would be the same one.
    assert series() - before == 1
    assert telemetry.value(names.REFUSED, {"status": "404"}) == 5000


async def test_what_a_guard_caught_is_counted_and_told(make: Any) -> None:
    run = Running(make())
    await healthy(run)

    class Broken:
        def deliver(self, alert: Any) -> None:
            raise RuntimeError("a sink of another's making")

    run.server.optimizer.alerts.add([Broken()])
    await the_journal_drops(run)
    for _ in range(3):
        await run.second()
    telemetry = run.server.optimizer.telemetry
    assert telemetry.value(names.JOURNAL_DROPPED) == 7
    assert telemetry.value(names.STEP_ERRORS, {"part": "alert_sink"}) >= 1
    assert telemetry.value(names.STEP_ERRORS, {"part": "decision"}) == 0
    subjects = {alert.subject for alert in run.server.heard.alerts if alert.name == "optimizer_fault"}
    assert "alert_sink" in subjects


@pytest.mark.parametrize("name", list(FAULTS))
async def test_each_alert_carries_evidence_what_to_do_and_the_way_back(make: Any, name: str) -> None:
    run = Running(make(**SERVERS.get(name, {})))
    await healthy(run)
    await FAULTS[name](run)
    for _ in range(round(WITHIN_S[name])):
        await run.second()
    told = next(alert for alert in run.server.heard.alerts if alert.name == name)
    assert {"value", "limit"} <= set(told.evidence)
    assert told.remedy
    assert told.undo
    rule = next(rule for rule in RULES if rule.name == name)
    assert told.severity == rule.severity.value


async def test_the_watch_started_twice_looks_once_and_not_after_its_end(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, looks = make().optimizer.watch, []
    monkeypatch.setattr(watch, "evaluate", lambda: looks.append(1))
    await watch.start()
    await watch.start()
    await asyncio.sleep(0)
    assert looks == [1]
    await watch.stop()
    await watch.stop()
    await asyncio.sleep(0)
    assert looks == [1]


class Week:
    """Figures of a server without faults: noise, bursts, a slow minute now and then, quiet nights."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.counts = ObjectiveCounts()

    def health(self, now_s: float, step_s: float) -> Health:
        draw, hour = self.random, now_s / 3600.0 % 24.0
        rate = 0.02 if hour < 6 else 1.5 if 9 <= hour < 18 else 0.4
        burst = draw.random() < 0.002
        for _ in range(round(draw.gauss(rate, rate / 4) * step_s)):
            self.counts.note("auto", draw.random() >= (0.05 if burst else 0.003), now_s)
        return Health(
            error_fraction=draw.betavariate(1, 300),
            avg_latency_ms=draw.lognormvariate(5.5, 0.15),
            members=3,
            objectives=self.counts.windows(now_s),
            queues={"local": 1.0 if burst else min(0.9, draw.expovariate(6.0))},
            reading_ages_s={"a/0": 25.0 if draw.random() < 0.001 else draw.uniform(0.1, 2.5)},
            pool_ages_s={"local": draw.uniform(0.1, 2.5)},
            loop_age_s=draw.uniform(0.1, 2.0),
            silences=[Silence(member_id="a", seconds=draw.expovariate(1.0), isolated=False)],
        )


@pytest.mark.parametrize("seed", [1, 2])
def test_a_week_without_faults_pages_at_most_once(seed: int) -> None:
    week, book, policy, told = Week(seed), AlertBook(), Policy(), []
    step_s = 20.0
    for number in range(round(7 * 86_400 / step_s)):
        now_s = number * step_s
        found = conditions(policy, week.health(now_s, step_s), book.holding())
        told += book.update(found, now_s, now_s)
    pages = [alert for alert in told if alert.severity == Severity.PAGE.value and not alert.resolved]
    assert len(pages) <= 1
    # Of tickets, few: people stop reading the others.
    assert len([alert for alert in told if not alert.resolved]) <= 5
