"""Two API server processes of one real engine, and its adapters as members."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.real.adapters import write_adapter
from tests.real.crowds import holds

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]
ADAPTER = "tuned"
MEMBERS = {"small": {"quality": 0.8}, ADAPTER: {"quality": 0.9}}


@pytest.fixture(scope="module")
def pair(rig_type: Any, start: Any, model_folder: Path, tmp_path_factory: Any) -> Iterator[Any]:
    adapter = write_adapter(tmp_path_factory.mktemp("lora") / ADAPTER, model_folder)
    more = f" --api-server-count 2 --enable-lora --lora-modules {ADAPTER}={adapter}"
    with start("vllm", inside=True, more=more, LOADWISE_ENGINE_MEMBERS=json.dumps(MEMBERS)) as server:
        rig = rig_type("vllm-inside", server.url, server.url, "vllm")
        # The first process that answers has started; the other may not yet.
        holds(lambda: all(len(rig.view("status")["inside"]["processes"]) == 2 for _ in range(8)), 30.0)
        yield rig


def complete(rig: Any, **changes: Any) -> httpx.Response:
    """One answer over a connection of its own, so that any process may get it."""
    asked = {"model": "small", "prompt": "def f(", "max_tokens": 8, "ignore_eos": True, **changes}
    answer = httpx.post(rig.url + "/v1/completions", json=asked, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer


def test_both_processes_are_there_and_say_the_same(pair: Any) -> None:
    said = [pair.view("status") for _ in range(8)]
    assert {len(status["inside"]["processes"]) for status in said} == {2}
    assert len({status["inside"]["optimising_process"] for status in said}) == 1
    assert len({status["current_strategy"] for status in said}) == 1


def test_the_merged_view_agrees_with_the_engines_metrics(pair: Any) -> None:
    for place in range(24):
        complete(pair, prompt=f"def f{place}(")
    deadline_s = time.monotonic() + 5.0
    while time.monotonic() < deadline_s:
        time.sleep(0.1)
    said, totals = pair.engine_says(), pair.view("status")["inside"]["totals"]
    assert totals["prompt_tokens"] == pytest.approx(said["prompt_tokens"], rel=0.02)
    assert totals["output_tokens"] == pytest.approx(said["output_tokens"], rel=0.02)
    assert said["output_tokens"] >= 24 * 8


def test_a_change_holds_in_every_process_once_it_is_answered(pair: Any) -> None:
    pair.configure(ceilings={"max_tokens": 3})
    tokens = [complete(pair).json()["usage"]["completion_tokens"] for _ in range(12)]
    pair.configure(ceilings={})
    assert tokens == [3] * 12
    assert complete(pair).json()["usage"]["completion_tokens"] == 8


def test_every_request_of_either_process_has_one_outcome(pair: Any) -> None:
    def outcomes() -> int:
        return sum(model["outcomes"] for model in pair.view("ensemble")["models"])

    def settled() -> int:
        """The count once every view of every process has been renewed twice without a change."""
        seen = [(time.monotonic(), outcomes())]
        while seen[-1][0] - seen[0][0] < 2.0:
            time.sleep(0.1)
            now = time.monotonic(), outcomes()
            seen = [*seen, now] if now[1] == seen[0][1] else [now]
        return seen[0][1]

    before = settled()
    for _ in range(20):
        complete(pair)
    deadline_s = time.monotonic() + 10
    while outcomes() - before < 20 and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert settled() - before == 20


def test_adapters_are_members_and_auto_chooses_among_them(pair: Any) -> None:
    assert {model["model_id"] for model in pair.view("ensemble")["models"]} == {"small", ADAPTER}
    named = complete(pair, model=ADAPTER)
    assert named.headers["x-loadwise-member"] == ADAPTER
    chosen = [complete(pair, model="auto") for _ in range(6)]
    for answer in chosen:
        assert answer.json()["model"] == answer.headers["x-loadwise-member"]
