"""The official client, unmodified, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

from loadwise.clock import SystemClock
from loadwise.errors import RequestError
from loadwise.settings import Settings
from loadwise.testing.fakes import FakeTokenEngine

MESSAGES = [{"role": "user", "content": "say it again"}]
SAID = (
    "x-loadwise-member",
    "x-loadwise-strategy",
    "x-loadwise-reason",
    "x-loadwise-tuned",
    "x-loadwise-config",
    "x-request-id",
)


@pytest.fixture
async def site(rendered, on_socket):
    tokens = FakeTokenEngine(answer_length=6, clock=SystemClock())
    async with on_socket(await rendered(tokens)) as site:
        yield site


@pytest.fixture
async def client(site) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


async def test_chat_answers_with_usage_and_the_members_name(client, site):
    answer = await client.chat.completions.create(
        model="auto", messages=MESSAGES, max_tokens=4, temperature=0
    )
    assert answer.model == "fast"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 4
    assert [outcome.ending for outcome in site.director.outcomes] == ["succeeded"]
    assert site.director.outcomes[0].output_tokens == 4


async def test_chat_streams_its_answer_and_ends_it_once(client, site):
    stream = await client.chat.completions.create(
        model="fast", messages=MESSAGES, stream=True, temperature=0, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [6]
    assert [outcome.finish_reason for outcome in site.director.outcomes] == ["stop"]
    assert site.director.outcomes[0].time_to_first_token_s is not None


async def test_a_streams_answer_equals_the_whole_one(client):
    whole = await client.completions.create(model="auto", prompt="abcdef", max_tokens=5, temperature=0)
    stream = await client.completions.create(
        model="auto", prompt="abcdef", max_tokens=5, temperature=0, stream=True
    )
    assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.choices[0].text


async def test_completions_take_token_ids_and_several_prompts(client):
    answer = await client.completions.create(model="auto", prompt=[[70, 71], [72, 73]], max_tokens=2)
    assert [choice.index for choice in answer.choices] == [0, 1]


@pytest.mark.parametrize("stream", [False, True])
async def test_every_answer_says_what_was_done(client, site, stream):
    site.director.changes = {"max_tokens": 3}
    answer = await client.chat.completions.with_raw_response.create(
        model="auto", messages=MESSAGES, stream=stream, extra_headers={"x-request-id": "mine-1"}
    )
    assert all(name in answer.headers for name in SAID)
    assert answer.headers["x-loadwise-tuned"] == "max_tokens=3"
    assert answer.headers["x-request-id"] == "mine-1"


async def test_off_leaves_the_request_untouched(client, site):
    site.director.changes = {"max_tokens": 3}
    answer = await client.chat.completions.with_raw_response.create(
        model="auto", messages=MESSAGES, extra_headers={"x-loadwise": "off"}
    )
    assert answer.headers["x-loadwise-reason"] == "off"
    assert answer.headers["x-loadwise-tuned"] == "none"
    assert site.director.requests[0].off


async def test_models_lists_auto_and_each_member(client):
    names = [model.id async for model in client.models.list()]
    assert names == ["auto", "fast"]
    assert (await client.models.retrieve("fast")).id == "fast"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("absent")


async def test_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="absent", messages=MESSAGES)
    assert caught.value.body["param"] == "model"


async def test_n_beyond_the_limit_is_refused_by_name(client, site):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="auto", messages=MESSAGES, n=10**6)
    assert caught.value.body["param"] == "n"
    assert not site.director.requests


async def test_prompt_beyond_the_context_is_refused(client, site):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="auto", prompt="x" * 5000)
    assert caught.value.body["code"] == "context_length_exceeded"
    assert site.director.outcomes[0].status == 400


async def test_a_full_server_says_when_to_come_back(client, site):
    site.director.refusal = RequestError("full", status=429, kind="rate_limit_error", retry_after_s=1.2)
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model="auto", messages=MESSAGES)
    assert caught.value.response.headers["retry-after"] == "2"


async def test_a_wrong_key_is_an_authentication_error(rendered, on_socket):
    async with (
        on_socket(await rendered(settings=Settings(api_key="right"))) as site,
        openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="wrong", max_retries=0) as client,
    ):
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
        assert (await client.with_options(api_key="right").models.list()).data


async def test_an_engine_that_dies_mid_stream_ends_the_stream_with_an_error(client, site):
    stream = await client.chat.completions.create(
        model="auto", messages=MESSAGES, stream=True, max_tokens=500, extra_body={"ignore_eos": True}
    )
    await anext(stream)
    site.tokens.fail("the device is gone")
    with pytest.raises(openai.APIError):
        [chunk async for chunk in stream]
    assert [outcome.ending for outcome in site.director.outcomes] == ["failed"]
