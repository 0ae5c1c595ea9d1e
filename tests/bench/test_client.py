"""The open-loop client: sends by the schedule, counts from it, and calls every failure by its name."""

from __future__ import annotations

from typing import Any

import pytest

from loadwise.bench.client import Client, Planned, Sample, Target, body_of
from loadwise.errors import EngineError
from loadwise.testing.clock import FakeClock


def planned(model: str, t_s: float = 0.0, tokens: int = 3, **options: Any) -> Planned:
    return Planned(
        t_s=t_s, body=body_of(model, "a b c", tokens, **options), input_tokens=3, output_tokens=tokens
    )


async def ask(url: str, model: str, tokens: int = 3) -> Sample:
    async with Client(Target(url)) as client:
        [sample] = await client.replay(model, [planned(model, tokens=tokens)])
        return sample


async def test_requests_are_sent_without_waiting_for_answers(stub: Any) -> None:
    # The server answers none before all eight are there: a closed loop would never get that far.
    stub.meet(8)
    async with Client(Target(stub.url, timeout_s=20.0)) as client:
        samples = await client.replay("auto", [planned("auto") for _ in range(8)])
    assert [sample.error for sample in samples] == [None] * 8


class Sleepy:
    """A pause that oversleeps, on a clock that only it moves."""

    def __init__(self, oversleeps_s: float) -> None:
        self.clock = FakeClock()
        self.oversleeps_s = oversleeps_s
        self.asked: list[float] = []

    async def pause(self, seconds: float) -> None:
        self.asked.append(seconds)
        self.clock.advance(seconds + self.oversleeps_s if seconds > 0 else 0.0)


async def test_requests_go_out_at_their_scheduled_times(stub: Any) -> None:
    sleepy = Sleepy(0.0)
    async with Client(Target(stub.url), clock=sleepy.clock, pause=sleepy.pause) as client:
        samples = await client.replay("auto", [planned("auto", t_s) for t_s in (1.0, 1.0, 4.0)])
    assert sleepy.asked == pytest.approx([1.0, 0.0, 3.0])
    assert [sample.scheduled_s for sample in samples] == [1.0, 1.0, 4.0]
    assert stub.seen[0]["model"] == "auto"


async def test_a_late_client_counts_against_the_latency(stub: Any) -> None:
    sleepy = Sleepy(oversleeps_s=0.75)
    async with Client(Target(stub.url), clock=sleepy.clock, pause=sleepy.pause) as client:
        [sample] = await client.replay("auto", [planned("auto", 2.0)])
    assert sample.lag_s == pytest.approx(0.75)
    assert sample.time_to_first_token_s == pytest.approx(0.75)
    assert sample.total_s == pytest.approx(0.75)


async def test_a_complete_answer_says_who_answered_and_how_long_it_is(stub: Any) -> None:
    sample = await ask(stub.url, "auto", tokens=5)
    assert sample.answered
    assert (sample.member, sample.strategy, sample.reason) == ("accurate", "balanced", "named")
    assert (sample.prompt_tokens, sample.completion_tokens, sample.status) == (3, 5, 200)
    assert sample.time_to_first_token_s is not None
    assert sample.time_per_output_token_s is not None
    assert sample.time_to_first_token_s <= (sample.total_s or 0.0)


async def test_lengths_are_reproduced_whatever_the_model_would_say(stub: Any) -> None:
    await ask(stub.url, "fast", tokens=7)
    [body] = stub.seen
    assert body["max_tokens"] == body["min_tokens"] == 7
    assert body["ignore_eos"] is True
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("refused", "HTTP 429"),
        ("picky", "HTTP 400: no such field: min_tokens"),
        ("cut", "stream ended early"),
        ("broken", "engine died"),
        ("mute", "empty answer"),
        ("garbled", "unreadable event"),
        ("hangup", "isconnected"),
    ],
)
async def test_failures_are_samples_with_their_reason(stub: Any, model: str, error: str) -> None:
    sample = await ask(stub.url, model)
    assert not sample.answered
    assert error in (sample.error or "")


async def test_a_server_that_is_not_there_is_a_failed_sample() -> None:
    sample = await ask("http://127.0.0.1:1", "auto")
    assert sample.status is None
    assert "127.0.0.1" in (sample.error or "")
    assert sample.time_to_first_token_s is None
    assert sample.completion_tokens is None


async def test_an_answer_that_takes_too_long_is_a_failed_sample(stub: Any) -> None:
    stub.meet(2)
    async with Client(Target(stub.url, timeout_s=0.05)) as client:
        [sample] = await client.replay("auto", [planned("auto")])
    assert sample.error == "timeout"


async def test_without_usage_the_events_are_counted(stub: Any) -> None:
    sample = await ask(stub.url, "silent", tokens=4)
    assert sample.prompt_tokens is None
    assert sample.completion_tokens == 4


async def test_one_token_has_no_pace(stub: Any) -> None:
    sample = await ask(stub.url, "fast", tokens=1)
    assert sample.answered
    assert sample.time_per_output_token_s is None


async def test_chat_and_keys_are_sent_as_asked(stub: Any) -> None:
    target = Target(stub.url, api_key="data", admin_key="admin", chat=True)
    async with Client(target) as client:
        [sample] = await client.replay("auto", [planned("auto", chat=True)])
    assert sample.completion_tokens == 3
    assert stub.seen[0]["messages"] == [{"role": "user", "content": "a b c"}]
    assert stub.headers[0]["authorization"] == "Bearer data"
    assert stub.headers[0]["x-loadwise-admin-key"] == "admin"


async def test_every_end_is_told_once(stub: Any) -> None:
    told: list[Sample] = []
    async with Client(Target(stub.url)) as client:
        samples = await client.replay("auto", [planned("auto"), planned("refused")], told.append)
    assert sorted(map(id, told)) == sorted(map(id, samples))


async def test_views_are_none_where_the_server_has_none(stub: Any) -> None:
    stub.qualities = None
    async with Client(Target(stub.url)) as client:
        assert await client.get("/v1/optimization/ensemble") is None
    async with Client(Target("http://127.0.0.1:1")) as client:
        with pytest.raises(EngineError, match="Is it running"):
            await client.get("/v1/models")


async def test_a_closed_client_says_how_to_use_it() -> None:
    with pytest.raises(EngineError, match="async with"):
        await Client(Target("http://127.0.0.1:1")).get("/v1/models")
