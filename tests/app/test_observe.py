"""Observing servers by their metrics: what is silent, stale or saturated, and what would have been done."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest

from loadwise.app.observe import MetricsPage, Observer, observe
from loadwise.clock import SystemClock
from loadwise.decision.facts import EngineReading, Policy
from loadwise.errors import ConfigurationError, EngineError
from loadwise.testing import Behaviour, StubUpstream

METRICS = """
vllm:num_requests_running {running}
vllm:num_requests_waiting {waiting}
vllm:kv_cache_usage_perc 0.2
vllm:generation_tokens_total 100
"""


def reading(name: str, now_s: float, **figures: float | None) -> EngineReading:
    return EngineReading(replica_id=name, read_s=now_s, **figures)  # type: ignore[arg-type]


def follow(observer: Observer, seconds: int, **replicas: dict[str, float | None] | EngineError) -> None:
    """One sample a second; a replica is its figures, or an error."""
    for second in range(seconds):
        now_s = float(observer_time[id(observer)] + second)
        results = {
            name: found if isinstance(found, EngineError) else reading(name, now_s, **found)
            for name, found in replicas.items()
        }
        observer.sample(results, now_s)
    observer_time[id(observer)] += seconds


observer_time: dict[int, int] = {}


def watching(*names: str) -> Observer:
    observer = Observer(dict.fromkeys(names), Policy(), 0.0)
    observer_time[id(observer)] = 0
    return observer


BUSY = {"running_requests": 8, "waiting_requests": 30, "capacity_requests": 8, "output_tokens_per_s": 90.0}
IDLE = {"running_requests": 0, "waiting_requests": 0, "capacity_requests": 8, "output_tokens_per_s": 0.0}


def test_time_above_the_knee_and_the_load_that_would_have_moved_are_counted() -> None:
    observer = watching("eu", "us")
    follow(observer, 61, eu=BUSY, us=IDLE)
    found = observer.report()
    assert found["replicas"]["eu"]["above_knee_s"] == pytest.approx(60.0)
    assert found["replicas"]["eu"]["state"] == "saturated"
    assert found["replicas"]["us"]["above_knee_s"] == 0.0
    assert found["replicas"]["us"]["state"] == "fine"
    assert found["would_have_done"]["strategy"] == "performance"
    assert found["would_have_done"]["moved_load"] == [{"from": "eu", "to": "us", "seconds": 60.0}]


def test_a_server_that_runs_requests_and_makes_no_token_is_silent() -> None:
    observer = watching("eu")
    follow(observer, 20, eu={"running_requests": 3, "output_tokens_per_s": 0.0})
    assert observer.report()["replicas"]["eu"]["state"] == "silent"
    follow(observer, 2, eu={"running_requests": 3, "output_tokens_per_s": 50.0})
    found = observer.report()["replicas"]["eu"]
    assert found["state"] == "fine"
    assert found["longest_silence_s"] == 19.0


def test_a_server_that_stops_answering_is_unreadable_and_then_stale() -> None:
    observer = watching("eu", "us")
    follow(observer, 2, eu=IDLE, us=IDLE)
    follow(observer, 5, eu=EngineError("cannot be reached"), us=IDLE)
    assert observer.report()["replicas"]["eu"]["state"] == "unreadable"
    follow(observer, 40, eu=EngineError("cannot be reached"), us=IDLE)
    found = observer.report()["replicas"]["eu"]
    assert (found["state"], found["load_score"], found["failed_samples"]) == ("stale", None, 45)


def test_nothing_is_invented_for_a_server_that_was_never_read() -> None:
    observer = watching("eu")
    follow(observer, 3, eu=EngineError("cannot be reached"))
    found = observer.report()
    assert found["replicas"]["eu"]["state"] == "unread"
    assert found["replicas"]["eu"]["load_score"] is None
    assert found["would_have_done"] == {
        "strategy": None, "strategy_seconds": {}, "strategy_changes": 0, "moved_load": [],
    }  # fmt: skip


def test_what_a_server_does_not_say_is_named() -> None:
    observer = watching("eu")
    follow(observer, 2, eu={"running_requests": 1})
    assert any(
        sentence.startswith("eu does not say:") and "kv_cache" in sentence
        for sentence in observer.report()["metrics_cannot_tell"]
    )


async def test_real_servers_are_read_and_get_no_request() -> None:
    stub = StubUpstream(Behaviour(metrics=METRICS.format(running=2, waiting=0)))
    bare = StubUpstream(Behaviour())
    clock = SystemClock()
    try:
        pages = [
            MetricsPage("eu", await stub.start() + "/v1", clock),
            MetricsPage("bare", await bare.start(), clock),
        ]
        observer = Observer({"eu": None, "bare": None}, Policy(), clock.monotonic_s())
        await observe(pages, observer, clock, duration_s=1.5)
    finally:
        await asyncio.gather(stub.close(), bare.close())
    found = observer.report()
    assert found["replicas"]["eu"]["running_requests"] == 2
    assert found["replicas"]["bare"]["error"] == "answers 404 to /metrics"
    assert {(request.method, request.path) for request in stub.received} == {("GET", "/metrics")}
    # At most once a second.
    assert len(stub.received) == 2


async def test_the_command_prints_json_for_programs() -> None:
    stub = StubUpstream(Behaviour(metrics=METRICS.format(running=1, waiting=0)))
    try:
        url = await stub.start()
        command = [
            sys.executable, "-c", "from loadwise.cli import main; main()",
            "observe", "--upstream", f"eu={url}", "--duration", "1", "--json",
        ]  # fmt: skip
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60, check=False, env=os.environ
        )
    finally:
        await stub.close()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["replicas"]["eu"]["state"] == "fine"


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="http://"):
        MetricsPage("eu", "ftp://x", SystemClock())
