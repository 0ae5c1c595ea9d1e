"""What the engine's statistics say becomes totals and one reading; what they do not say stays absent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge

from loadwise.decision.facts import EngineReading
from loadwise.engines.inside import registry
from loadwise.engines.inside.description import describe as describe_engine
from loadwise.engines.inside.merging import Views
from loadwise.engines.inside.names import seen
from loadwise.engines.inside.registry import RegistryReader
from loadwise.engines.inside.totals import Totals, View
from loadwise.testing import FakeClock


def scheduler(running: int = 2, waiting: int = 1, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(num_running_reqs=running, num_waiting_reqs=waiting, **more)


def iteration(prompt: int = 0, output: int = 0, first: Any = (), later: Any = ()) -> SimpleNamespace:
    return SimpleNamespace(
        num_prompt_tokens=prompt,
        num_generation_tokens=output,
        time_to_first_tokens_iter=list(first),
        inter_token_latencies_iter=list(later),
    )


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def views(clock: FakeClock) -> Views:
    return Views(clock, replica_id="m-0", capacity_requests=8)


def view(process: str, *records: tuple[Any, Any], heard_s: float = 0.0) -> View:
    made = View(process=process)
    for about, happened in records:
        made.note(0, about, happened, heard_s)
    return made


def test_deferred_requests_wait_too_as_in_the_engines_own_metrics() -> None:
    made = view("a", (scheduler(num_skipped_waiting_reqs=4, kv_cache_usage=0.5), None))
    assert made.schedulers[0].waiting_requests == 5
    assert made.schedulers[0].kv_cache_usage_fraction == 0.5


def test_older_names_are_understood() -> None:
    made = view("a", (scheduler(gpu_cache_usage=0.25), SimpleNamespace(time_per_output_tokens_iter=[0.1])))
    assert made.schedulers[0].waiting_requests == 1
    assert made.schedulers[0].kv_cache_usage_fraction == 0.25
    assert made.totals.tokens_after_first == 1


@given(
    record=st.dictionaries(
        st.sampled_from(["num_running_reqs", "kv_cache_usage", "x"]), st.text() | st.none()
    )
)
def test_figures_that_are_none_are_absent_and_nothing_breaks(record: dict[str, Any]) -> None:
    made = view("a", (SimpleNamespace(**record), SimpleNamespace(**record)))
    assert made.schedulers[0].running_requests is None
    assert made.schedulers[0].kv_cache_usage_fraction is None
    assert made.totals == Totals()


def test_nobody_says_nothing(views: Views, clock: FakeClock) -> None:
    assert views.reading() == EngineReading(replica_id="m-0", read_s=clock.monotonic_s(), capacity_requests=8)


def test_the_whole_is_the_sum_of_the_processes_and_the_schedulers_newest_word(views: Views) -> None:
    views.renew(view("a", (scheduler(running=9), iteration(prompt=10, output=4)), heard_s=1.0))
    views.renew(view("b", (scheduler(running=3), iteration(prompt=5, output=2)), heard_s=2.0))
    assert views.totals() == Totals(prompt_tokens=15, output_tokens=6)
    assert views.reading().running_requests == 3


def test_a_view_that_is_not_renewed_for_three_seconds_is_absent(views: Views, clock: FakeClock) -> None:
    views.renew(view("a", (scheduler(running=9), iteration(prompt=10))))
    clock.advance(2.9)
    assert views.reading().running_requests == 9
    clock.advance(0.2)
    assert views.reading().running_requests is None
    assert views.totals().prompt_tokens == 10


def test_an_idle_process_that_renews_its_view_stays(views: Views, clock: FakeClock) -> None:
    idle = view("a", (scheduler(running=0), None))
    for _ in range(10):
        views.renew(idle)
        clock.advance(1.0)
    assert views.reading().running_requests == 0


def test_what_a_process_counted_stays_counted_when_it_leaves(views: Views) -> None:
    views.renew(view("a", (None, iteration(prompt=10, output=3))))
    views.leave("a")
    views.renew(view("b", (None, iteration(prompt=1, output=1))))
    assert views.totals() == Totals(prompt_tokens=11, output_tokens=4)


def test_a_process_that_comes_back_counts_once(views: Views) -> None:
    made = view("a", (None, iteration(prompt=10, output=3)))
    views.renew(made)
    views.leave("a")
    made.note(0, None, iteration(prompt=5, output=1), 0.0)
    views.renew(made)
    assert views.totals() == Totals(prompt_tokens=15, output_tokens=4)


def test_another_process_of_the_same_name_counts_anew(views: Views) -> None:
    for _ in range(3):
        views.renew(view("a", (None, iteration(prompt=10, output=3))))
        views.leave("a")
        views.renew(view("a"))
        views.leave("a")
    assert views.totals() == Totals(prompt_tokens=30, output_tokens=9)


def test_speeds_and_times_are_those_of_the_last_seconds(views: Views, clock: FakeClock) -> None:
    made = view("a")
    views.renew(made)
    clock.advance(10.0)
    made.note(0, scheduler(), iteration(100, 50, first=[0.2, 0.4], later=[0.01] * 10), clock.monotonic_s())
    views.renew(made)
    reading, last_s = views.reading(), clock.monotonic_s()
    assert reading.prompt_tokens_per_s == pytest.approx(10.0)
    assert reading.output_tokens_per_s == pytest.approx(5.0)
    assert reading.time_to_first_token_s == pytest.approx(0.3)
    assert reading.time_per_output_token_s == pytest.approx(0.01)
    for _ in range(40):
        clock.advance(1.0)
        views.renew(made)
    quiet = views.reading()
    assert quiet.output_tokens_per_s == 0.0
    assert quiet.last_token_s == last_s
    assert quiet.time_to_first_token_s is None


def test_a_version_that_the_suite_ran_with_is_known() -> None:
    assert seen("vllm", "0.32.0")
    assert seen("aphrodite", "0.24.1")
    assert not seen("vllm", "0.320.0")
    assert not seen("sglang", "0.32.0")


def test_an_engine_that_says_little_of_itself_is_described_by_what_it_says() -> None:
    found = describe_engine("vllm", None, SimpleNamespace(model="/m/x"))
    assert (found.names, found.context_tokens, found.capacity_requests) == (("/m/x",), None, None)
    assert found.compilation["mode"] is None
    assert found.processes == 1


def test_a_real_engine_client_is_read_from_the_processs_own_metrics(monkeypatch, clock) -> None:
    own = CollectorRegistry()
    Gauge("vllm:num_requests_running", "", ["model_name", "engine"], registry=own).labels("m", "0").set(3)
    Gauge("some_other_metric", "", registry=own).set(7)
    monkeypatch.setattr(registry, "REGISTRY", own)
    client = type("AsyncLLM", (), {"__module__": "vllm.v1.engine.async_llm"})()
    client.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=16))
    reader = RegistryReader.of(client, "engine", clock)
    assert reader is not None
    assert reader.reading().running_requests == 3
    assert reader.reading().waiting_requests is None
    assert reader.reading().capacity_requests == 16
    own.unregister(own._names_to_collectors["vllm:num_requests_running"])
    assert reader.reading().running_requests is None
    assert RegistryReader.of(object(), "engine", clock) is None
