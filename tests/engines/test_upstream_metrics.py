"""Other servers' metrics are read by a table of names, and nothing is made up."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.engines.accounting import Accounting
from loadwise.engines.upstream_metrics import read_scrape
from loadwise.ports import Progress
from loadwise.testing import FakeClock

VLLM = """# HELP vllm:num_requests_running running
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_running{engine="0",model_name="other"} 50
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:generation_tokens_total{engine="0",model_name="m"} %d
vllm:time_to_first_token_seconds_bucket{le="0.1",model_name="m"} 5.0
vllm:time_to_first_token_seconds_sum{model_name="m"} %f
vllm:time_to_first_token_seconds_count{model_name="m"} %d
"""


def test_values_of_our_model_are_summed_over_engines():
    scrape = read_scrape(VLLM % (100, 1.0, 10), "m")
    assert scrape.gauges == {"running": 5.0, "waiting": 1.0, "kv_cache_usage": 0.25}
    assert scrape.counters == {"output_tokens": 100.0}
    assert scrape.histograms == {"first_token": (1.0, 10.0)}


def test_labels_that_do_not_know_our_name_say_nothing_about_it():
    assert read_scrape(VLLM % (1, 1, 1), "renamed").gauges["running"] == 55.0


@pytest.mark.parametrize(
    ("text", "word", "value"),
    [
        ("aphrodite:num_requests_running 4", "running", 4),
        ('sglang:num_queue_reqs{model_name="x",tp_rank="0"} 2', "waiting", 2),
        ("llamacpp:kv_cache_usage_ratio 0.5", "kv_cache_usage", 0.5),
        ("tgi_queue_size 7 1700000000000", "waiting", 7),
        ("vllm:gpu_cache_usage_perc 0.1", "kv_cache_usage", 0.1),
        ('vllm:num_requests_running{a="x\\"} 9"} 3', "running", 3),
    ],
)
def test_every_known_server_is_understood(text, word, value):
    assert read_scrape(text).gauges == {word: value}


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "x", ""])
def test_values_that_are_none_are_absent(value):
    assert read_scrape(f"vllm:num_requests_running {value}").empty


@given(text=st.text())
def test_any_text_can_be_read(text):
    assert read_scrape(text).empty


def test_counters_without_total_are_the_same_counters():
    assert read_scrape("vllm:prompt_tokens 5").counters == {"prompt_tokens": 5.0}


@pytest.fixture
def accounts():
    clock = FakeClock()
    return Accounting(clock, "far-0", 16), clock


def test_speeds_come_from_two_scrapes(accounts):
    accounting, clock = accounts
    first = accounting.scraped(read_scrape(VLLM % (100, 1.0, 10), "m"))
    assert first.output_tokens_per_s is None
    assert first.time_to_first_token_s is None
    clock.advance(2)
    second = accounting.scraped(read_scrape(VLLM % (300, 3.0, 20), "m"))
    assert second.output_tokens_per_s == 100.0
    assert second.time_to_first_token_s == pytest.approx(0.2)
    assert (second.running_requests, second.waiting_requests, second.capacity_requests) == (5, 1, 16)
    assert second.prompt_tokens_per_s is None


def test_a_restarted_server_has_no_speed_for_a_moment(accounts):
    accounting, clock = accounts
    accounting.scraped(read_scrape(VLLM % (300, 3.0, 20), "m"))
    clock.advance(1)
    after = accounting.scraped(read_scrape(VLLM % (5, 0.1, 1), "m"))
    assert after.output_tokens_per_s is None
    assert after.time_to_first_token_s is None


def test_without_metrics_our_own_requests_count(accounts):
    accounting, clock = accounts
    accounting.in_flight = 2
    clock.advance(5)
    began_s = clock.monotonic_s() - 3
    accounting.ended(Progress(prompt_tokens=60, output_tokens=5, first_token_s=began_s + 1), began_s)
    reading = accounting.own()
    assert (reading.running_requests, reading.waiting_requests) == (2, None)
    assert reading.time_to_first_token_s == 1.0
    assert reading.time_per_output_token_s == 0.5
    assert reading.prompt_tokens_per_s == 2.0
    assert reading.kv_cache_usage_fraction is None


PAGES = Path(__file__).with_name("pages")


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.prom")), ids=lambda page: page.stem)
def test_every_figure_is_read_from_the_pages_of_real_engines(page: Path) -> None:
    scrape = read_scrape(page.read_text(encoding="utf-8"), "balanced")
    assert scrape.gauges == {"running": 0.0, "waiting": 0.0, "kv_cache_usage": 0.0}
    assert scrape.counters == {"prompt_tokens": 18.0, "output_tokens": 68.0}
    first_s, firsts = scrape.histograms["first_token"]
    later_s, laters = scrape.histograms["per_token"]
    assert (firsts, laters) == (4.0, 64.0)
    assert 0 < first_s < 100
    assert 0 < later_s < 10


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.prom")), ids=lambda page: page.stem)
def test_a_metric_that_a_version_lacks_is_absent_and_not_zero(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    without = "\n".join(line for line in text.splitlines() if "kv_cache_usage" not in line)
    assert "kv_cache_usage" not in read_scrape(without, "balanced").gauges


def test_of_several_engines_the_fullest_cache_counts() -> None:
    page = 'vllm:kv_cache_usage_perc{engine="0"} 0.25\nvllm:kv_cache_usage_perc{engine="1"} 0.75\n'
    assert read_scrape(page).gauges == {"kv_cache_usage": 0.75}


FORMATS = Path(__file__).with_name("formats")
QUEUES = {"running": 6.0, "waiting": 2.0}
FULL = {**QUEUES, "kv_cache_usage": 0.25}
TIMES = {"first_token": (2.5, 10.0), "per_token": (34.0, 3400.0)}


@pytest.mark.parametrize(
    ("page", "gauges", "histograms"),
    [
        ("sglang-0.4", FULL, TIMES),
        ("sglang-0.5", FULL, TIMES),
        ("llama-cpp-2024", FULL, {}),
        ("llama-cpp-2026", QUEUES, {}),
        ("text-generation-inference-3.1", QUEUES, {"per_token": (0.1, 10.0)}),
    ],
)
def test_pages_as_other_servers_document_them_are_read_whole(page, gauges, histograms) -> None:
    scrape = read_scrape((FORMATS / f"{page}.prom").read_text(encoding="utf-8"), "m")
    assert scrape.gauges == gauges
    assert scrape.counters == {"prompt_tokens": 1200.0, "output_tokens": 3400.0}
    assert scrape.histograms == histograms
