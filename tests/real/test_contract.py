"""One contract for every way to serve: inside Aphrodite and vLLM, in front of them, and embedded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from tests.real.crowds import Crowd, holds

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]

VIEWS = ("status", "metrics", "ensemble", "report", "dashboard")
COMMANDS = ("start", "stop", "configure", "force_recompile", "ensemble/add_model?model_id=x")
# More requests than the engines run at once here (8 inside and in front, 32 embedded).
BURST = 64
LONG = 900
# Load that stays is followed within this.
FOLLOWS_S = 10.0
QUICK = {
    "tuning_interval_sec": 1.0,
    "dwell_sec": 0.0,
    "experiment": {"block_share": 0.0, "conversation_share": 0.0},
}


@pytest.fixture
def client(rig: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=rig.url + "/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture
def quick(rig: Any) -> Iterator[None]:
    """Settings under which a strategy follows load within seconds; put back afterwards."""
    rig.configure(**QUICK)
    yield
    rig.configure(
        tuning_interval_sec=30.0,
        dwell_sec=None,
        experiment={"block_share": 0.1, "conversation_share": 0.01},
        ceilings={},
    )


async def burst(rig: Any, number: int, tokens: int) -> list[Any]:
    """So many answers at once, each of exactly `tokens`."""
    async with openai.AsyncOpenAI(
        base_url=rig.url + "/v1", api_key="none", max_retries=0, timeout=240
    ) as asking:

        def one(place: int) -> Any:
            return asking.completions.create(
                model=rig.model,
                prompt=f"def f{place}(",
                max_tokens=tokens,
                extra_body={"ignore_eos": True},
            )

        return await asyncio.gather(*(one(place) for place in range(number)))


def test_every_route_is_there_and_changes_need_the_key(rig: Any) -> None:
    for view in VIEWS:
        assert rig.view(view)
    with httpx.Client(base_url=rig.url, timeout=30, trust_env=False) as stranger:
        for command in COMMANDS:
            answer = stranger.post(f"/v1/optimization/{command}", json={})
            assert answer.status_code in {401, 403}, (command, answer.text)
            assert answer.json()["error"]["message"]


def test_a_stream_says_what_the_whole_answer_says(rig: Any, client: openai.OpenAI) -> None:
    asked: Any = {"model": rig.model, "prompt": "def read_lines(path):\n", "max_tokens": 24, "temperature": 0}
    whole = client.completions.create(**asked)
    events = list(client.completions.create(**asked, stream=True))
    text = "".join(choice.text for event in events for choice in event.choices)
    assert text == whole.choices[0].text
    assert all(event.usage is None for event in events)


def test_a_chat_stream_ends_with_usage_where_it_was_asked_for(rig: Any, client: openai.OpenAI) -> None:
    events = list(
        client.chat.completions.create(
            model=rig.model,
            messages=[{"role": "user", "content": "def add(a, b):"}],
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    usage = events[-1].usage
    assert usage is not None
    assert 0 < usage.completion_tokens <= 12
    assert any(choice.delta.content for event in events for choice in event.choices)


def test_clients_that_leave_free_their_places_within_a_second(rig: Any) -> None:
    def idle() -> bool:
        said = rig.engine_says()
        return said["running"] == 0 and not said.get("waiting")

    holds(idle, 30)
    with Crowd(rig, BURST, LONG, stream=True) as crowd:
        holds(lambda: rig.engine_says()["running"] >= 8, 30)
        # What is asked for now is the work of many seconds.
        before = rig.engine_says().get("output_tokens", 0)
        crowd.leave()
        holds(idle, 1.0)
    after = rig.engine_says().get("output_tokens", 0)
    assert after - before < BURST * LONG / 2


def test_what_the_operator_holds_down_arrives_in_the_engine(rig: Any, client: openai.OpenAI) -> None:
    rig.configure(ceilings={"max_tokens": 5})
    answer = client.completions.with_raw_response.create(
        model=rig.model, prompt="def f(", max_tokens=60, extra_body={"ignore_eos": True}
    )
    rig.configure(ceilings={})
    completion = answer.parse()
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 5
    assert completion.choices[0].finish_reason == "length"
    assert "max_tokens=5" in answer.headers["x-loadwise-tuned"]


@pytest.mark.usefixtures("quick")
def test_load_follows_a_burst_and_the_strategy_with_it(rig: Any) -> None:
    holds(lambda: rig.view("status")["current_strategy"] == "quality", 60)
    # As long as it takes to be seen, which must be soon.
    with Crowd(rig, BURST, LONG if rig.engine == "embedded" else 400):
        holds(lambda: (rig.view("metrics")["active_requests"] or 0) >= 8, FOLLOWS_S)
        holds(lambda: (rig.view("metrics")["overall_load_score"] or 0) > 0.5, FOLLOWS_S)
        holds(lambda: rig.view("status")["current_strategy"] == "performance", FOLLOWS_S)
    # Times to first token of the burst are remembered for a minute.
    holds(lambda: rig.view("status")["current_strategy"] == "quality", 240)
    assert rig.view("metrics")["active_requests"] == 0


def test_every_request_has_one_outcome(rig: Any) -> None:
    before = rig.view("ensemble")["models"][0]["outcomes"]
    answers = asyncio.run(burst(rig, 40, 8))
    assert len(answers) == 40
    holds(lambda: rig.view("status")["in_flight"] == 0, 10)
    assert rig.view("ensemble")["models"][0]["outcomes"] - before == 40


def test_the_engines_own_metrics_and_ours_agree(rig: Any) -> None:
    if rig.engine == "embedded":
        pytest.skip("the embedded engine's figures are ours")
    asyncio.run(burst(rig, 16, 20))
    time_passes = time.monotonic() + 5
    holds(lambda: time.monotonic() > time_passes, 10)
    said = rig.engine_says()
    reading = next(iter(rig.view("status")["engines"].values()))
    assert reading["running_requests"] == said["running"] == 0
    assert reading["waiting_requests"] == said["waiting"] == 0
    if rig.inside:
        totals = rig.view("status")["inside"]["totals"]
        assert totals["prompt_tokens"] == pytest.approx(said["prompt_tokens"], rel=0.02)
        assert totals["output_tokens"] == pytest.approx(said["output_tokens"], rel=0.02)


def test_stopped_nothing_is_touched_and_started_again_it_is(rig: Any, client: openai.OpenAI) -> None:
    asked: Any = {"model": rig.model, "prompt": "def f(", "max_tokens": 4}
    with rig.operator() as operator:
        assert operator.post("/v1/optimization/stop").status_code == 200
        stopped = client.completions.with_raw_response.create(**asked)
        assert operator.post("/v1/optimization/start").status_code == 200
    started = client.completions.with_raw_response.create(**asked)
    assert stopped.headers["x-loadwise-tuned"] == "none"
    if rig.inside:
        assert stopped.headers["x-loadwise-reason"] == "stopped"
        assert started.headers["x-loadwise-reason"] != "stopped"


def test_the_engines_errors_keep_their_status(rig: Any, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody", prompt="a", max_tokens=1)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=rig.model, prompt="a", max_tokens=-1)
