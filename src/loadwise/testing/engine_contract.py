# ruff: noqa: S101, D102 - these are tests, which assert, and whose names are their claims
"""What every engine promises, as tests: subclass a contract and give it an `engine` fixture.

    class TestMine(EngineContract):
        @pytest.fixture
        async def engine(self): ...  # started; closed afterwards

`EngineContract` is for every `Engine`; `BoundedQueueContract` for those that hold their own queue (the
fixture makes them with `places` and `queue`); `SamplingContract` for those that generate themselves.
The tests are asynchronous and need pytest-asyncio's automatic mode.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from loadwise.decision.facts import Endpoint, EngineReading, Feature
from loadwise.ports import Answer, Call, Engine

MESSAGES = [{"role": "user", "content": "def add(first, second):"}]
PROMPT = "def add(first, second):"
ENDPOINTS = (Endpoint.CHAT, Endpoint.COMPLETION)
# How long anything may take before a test fails rather than hangs, in seconds.
PATIENCE_S = 60.0


def make_call(endpoint: Endpoint = Endpoint.COMPLETION, **fields: Any) -> Call:
    """A call with a small prompt of its endpoint; `fields` are the body's other fields."""
    content: dict[str, Any] = {"messages": MESSAGES} if endpoint is Endpoint.CHAT else {"prompt": PROMPT}
    body = {"model": "tested", "max_tokens": 8, "temperature": 0, **content, **fields}
    raw = json.dumps({name: value for name, value in body.items() if value is not ...}).encode()
    return Call(endpoint=endpoint, body=raw, request_id="contract-1", stream=bool(fields.get("stream")))


async def read(answer: Answer) -> bytes:
    """The whole body of an answer."""
    async with asyncio.timeout(PATIENCE_S):
        return b"".join([chunk async for chunk in answer.chunks])


async def ask(engine: Engine, endpoint: Endpoint = Endpoint.COMPLETION, **fields: Any) -> dict[str, Any]:
    """The decoded body of an answer that must be 200."""
    answer = await engine.answer(make_call(endpoint, **fields))
    raw = await read(answer)
    if answer.status != 200:
        raise AssertionError(f"{answer.status}: {raw!r}")
    body: dict[str, Any] = json.loads(raw)
    return body


async def stream(engine: Engine, endpoint: Endpoint, **fields: Any) -> list[Any]:
    """The decoded events of a streamed answer, without `[DONE]`, which must end it exactly once."""
    answer = await engine.answer(make_call(endpoint, stream=True, **fields))
    raw = (await read(answer)).replace(b"\r\n", b"\n")
    events = [event.removeprefix(b"data: ") for event in raw.split(b"\n\n") if event]
    if answer.status != 200 or events.count(b"[DONE]") != 1 or events[-1] != b"[DONE]":
        raise AssertionError(f"{answer.status}: {raw!r}")
    return [json.loads(event) for event in events[:-1]]


def text_of(choice: dict[str, Any]) -> str:
    """The text of a choice in any of the four shapes."""
    part = choice.get("message") or choice.get("delta")
    text = choice.get("text") if part is None else part.get("content")
    return text or ""


async def until(engine: Engine, holds: Callable[[EngineReading], bool]) -> EngineReading:
    """The first reading for which `holds`; fails after `PATIENCE_S`."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            reading = await engine.observe()
            if holds(reading):
                return reading
            # Not 0: a spinning loop would keep the interpreter's lock from the engine's own thread.
            await asyncio.sleep(0.001)


async def until_idle(engine: Engine) -> None:
    """Returns when nothing runs or waits any more."""
    await until(engine, lambda reading: not reading.running_requests and not reading.waiting_requests)


class EngineContract:
    """For every `Engine`, real or fake, embedded or far away."""

    # Fields that make an answer long enough to be interrupted.
    endless: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True}  # noqa: RUF012 - overridden, not shared

    async def test_answers_have_every_required_field(self, engine: Engine) -> None:
        for endpoint, kind in zip(ENDPOINTS, ("chat.completion", "text_completion"), strict=True):
            body = await ask(engine, endpoint)
            assert {"id", "created", "model", "usage"} <= set(body)
            assert body["object"] == kind
            choice = body["choices"][0]
            assert choice["index"] == 0
            assert choice["finish_reason"] in ("stop", "length")
            assert "logprobs" in choice
            if endpoint is Endpoint.CHAT:
                assert choice["message"]["role"] == "assistant"
                assert choice["message"]["refusal"] is None

    async def test_streamed_text_is_the_whole_text(self, engine: Engine) -> None:
        for endpoint in ENDPOINTS:
            whole = await ask(engine, endpoint)
            events = await stream(engine, endpoint)
            pieces = [text_of(choice) for event in events for choice in event["choices"]]
            assert "".join(pieces) == text_of(whole["choices"][0])

    async def test_chunks_of_a_stream_belong_together(self, engine: Engine) -> None:
        events = await stream(engine, Endpoint.CHAT)
        assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1
        assert {event["object"] for event in events} == {"chat.completion.chunk"}
        assert events[0]["choices"][0]["delta"]["role"] == "assistant"
        reasons = [choice["finish_reason"] for event in events for choice in event["choices"]]
        assert reasons[-1] in ("stop", "length")
        assert set(reasons[:-1]) <= {None}

    async def test_usage_is_streamed_once_to_those_who_ask(self, engine: Engine) -> None:
        events = await stream(engine, Endpoint.CHAT, stream_options={"include_usage": True})
        whole = await ask(engine, Endpoint.CHAT)
        assert [event["choices"] for event in events].count([]) == 1
        assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
        assert not any(event.get("usage") for event in events[:-1])

    async def test_usage_is_not_streamed_unasked(self, engine: Engine) -> None:
        events = await stream(engine, Endpoint.CHAT)
        assert all(event["choices"] for event in events)
        assert not any(event.get("usage") for event in events)

    async def test_progress_knows_what_was_answered(self, engine: Engine) -> None:
        for streamed in (False, True):
            answer = await engine.answer(make_call(stream=streamed))
            await read(answer)
            whole = await ask(engine)
            assert answer.progress.output_tokens == whole["usage"]["completion_tokens"]
            assert answer.progress.prompt_tokens == whole["usage"]["prompt_tokens"]
            assert answer.progress.finish_reason == whole["choices"][0]["finish_reason"]
            assert not answer.progress.failed

    async def test_streams_note_when_the_first_token_came(self, engine: Engine) -> None:
        answer = await engine.answer(make_call(stream=True))
        await read(answer)
        assert answer.progress.first_token_s is not None

    async def test_closing_a_stream_frees_its_place(self, engine: Engine) -> None:
        answer = await engine.answer(make_call(stream=True, **self.endless))
        chunks = answer.chunks
        await chunks.__anext__()
        await chunks.aclose()  # type: ignore[attr-defined]
        await until_idle(engine)
        assert await ask(engine)

    async def test_closing_an_unread_stream_frees_its_place(self, engine: Engine) -> None:
        answer = await engine.answer(make_call(stream=True, **self.endless))
        await answer.chunks.aclose()  # type: ignore[attr-defined]
        await until_idle(engine)
        assert await ask(engine)

    async def test_cancelling_an_unstreamed_call_frees_its_place(self, engine: Engine) -> None:
        call = make_call(**self.endless)
        task = asyncio.create_task(engine.answer(call))
        await until(engine, lambda reading: bool(reading.running_requests) or task.done())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until_idle(engine)
        assert await ask(engine)

    async def test_a_reading_names_its_replica_and_counts_what_runs(self, engine: Engine) -> None:
        answer = await engine.answer(make_call(stream=True, **self.endless))
        busy = await engine.observe()
        await answer.chunks.aclose()  # type: ignore[attr-defined]
        await until_idle(engine)
        assert busy.replica_id
        assert busy.running_requests == 1
        assert busy.kv_cache_usage_fraction is None or 0 <= busy.kv_cache_usage_fraction <= 1

    async def test_it_can_be_started_and_closed_twice(self, engine: Engine) -> None:
        await engine.start()
        assert await ask(engine)
        await engine.close()
        await engine.close()


class BoundedQueueContract:
    """For engines with a queue of their own, made with `places` and `queue`."""

    places = 2
    queue = 1
    endless: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True}  # noqa: RUF012 - overridden, not shared

    async def test_beyond_the_queue_it_answers_429_with_retry_after(self, engine: Engine) -> None:
        room, calls = self.places + self.queue, self.places + self.queue + 3
        tasks = [
            asyncio.create_task(engine.answer(make_call(stream=True, **self.endless))) for _ in range(calls)
        ]
        refused = [
            task.result() for task in await self._done(tasks, calls - room) if task.result().status != 200
        ]
        assert [answer.status for answer in refused] == [429] * (calls - room)
        assert all(int(dict(answer.headers)["retry-after"]) >= 1 for answer in refused)
        error = json.loads(await read(refused[0]))["error"]
        assert set(error) == {"message", "type", "param", "code"}
        await self._give_up(tasks)
        await until_idle(engine)
        assert await ask(engine)

    async def test_a_reading_tells_running_from_waiting(self, engine: Engine) -> None:
        tasks = [
            asyncio.create_task(engine.answer(make_call(stream=True, **self.endless)))
            for _ in range(self.places + self.queue)
        ]
        reading = await until(engine, lambda reading: reading.waiting_requests == self.queue)
        assert reading.running_requests == reading.capacity_requests == self.places
        assert reading.queue_capacity_requests == self.queue
        await self._give_up(tasks)
        await until_idle(engine)

    async def test_what_was_given_up_holds_no_cache(self, engine: Engine) -> None:
        answer = await engine.answer(make_call(stream=True, **self.endless))
        await answer.chunks.__anext__()
        # Where it tells of a cache, an answer on its way holds some.
        await until(engine, lambda reading: reading.kv_cache_usage_fraction != 0.0)
        await answer.chunks.aclose()  # type: ignore[attr-defined]
        await until(engine, lambda reading: not reading.kv_cache_usage_fraction)

    async def _done(self, tasks: list[asyncio.Task[Answer]], count: int) -> list[asyncio.Task[Answer]]:
        """The refusals, which come before any other answer ends."""
        for next_done in asyncio.as_completed(tasks, timeout=PATIENCE_S):
            await next_done
            done = [task for task in tasks if task.done()]
            if sum(1 for task in done if task.result().status != 200) >= count:
                return done
        return tasks

    async def _give_up(self, tasks: list[asyncio.Task[Answer]]) -> None:
        for task in tasks:
            task.cancel()
        for answer in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(answer, Answer):
                await answer.chunks.aclose()  # type: ignore[attr-defined]


class SamplingContract:
    """For engines that generate by themselves: every parameter does what its name says, or is refused."""

    async def test_greedy_answers_repeat(self, engine: Engine) -> None:
        first, second = await asyncio.gather(ask(engine), ask(engine))
        assert text_of(first["choices"][0]) == text_of(second["choices"][0])

    async def test_a_seed_repeats_and_another_differs(self, engine: Engine) -> None:
        options: dict[str, Any] = {"temperature": 1.5, "max_tokens": 16}
        # One after the other: in half precision a token's logits also depend on what else is in its batch.
        bodies = [await ask(engine, seed=seed, **options) for seed in (7, 7, *range(8, 12))]
        texts = [text_of(body["choices"][0]) for body in bodies]
        assert texts[0] == texts[1]
        assert len(set(texts)) > 1

    async def test_sampling_belongs_to_its_request(self, engine: Engine) -> None:
        alone = await ask(engine)
        beside = await asyncio.gather(
            ask(engine), ask(engine, temperature=2, seed=1), ask(engine, top_k=1, temperature=1)
        )
        assert text_of(beside[0]["choices"][0]) == text_of(alone["choices"][0])

    async def test_max_tokens_ends_an_answer_as_length(self, engine: Engine) -> None:
        body = await ask(engine, max_tokens=3, ignore_eos=True)
        assert body["usage"]["completion_tokens"] == 3
        assert body["choices"][0]["finish_reason"] == "length"

    async def test_ignore_eos_and_min_tokens_reproduce_a_length(self, engine: Engine) -> None:
        body = await ask(engine, max_tokens=40, min_tokens=40, ignore_eos=True)
        assert body["usage"]["completion_tokens"] == 40

    async def test_a_stop_string_ends_an_answer_and_is_not_returned(self, engine: Engine) -> None:
        whole = text_of((await ask(engine, max_tokens=20, ignore_eos=True))["choices"][0])
        stop = whole[3:5]
        body = await ask(engine, max_tokens=20, ignore_eos=True, stop=[stop])
        assert text_of(body["choices"][0]) == whole[: whole.index(stop)]
        assert body["choices"][0]["finish_reason"] == "stop"

    async def test_a_stop_string_ends_a_stream_too(self, engine: Engine) -> None:
        whole = text_of((await ask(engine, max_tokens=20, ignore_eos=True))["choices"][0])
        stop = whole[3:5]
        events = await stream(engine, Endpoint.COMPLETION, max_tokens=20, ignore_eos=True, stop=stop)
        assert "".join(text_of(event["choices"][0]) for event in events) == whole[: whole.index(stop)]
        assert events[-1]["choices"][0]["finish_reason"] == "stop"

    async def test_n_answers_are_numbered_and_counted(self, engine: Engine) -> None:
        body = await ask(engine, n=3, max_tokens=4, ignore_eos=True)
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert body["usage"]["completion_tokens"] == 12

    async def test_n_answers_stream_side_by_side(self, engine: Engine) -> None:
        events = await stream(engine, Endpoint.CHAT, n=2, max_tokens=4, ignore_eos=True)
        ended = [c["index"] for event in events for c in event["choices"] if c["finish_reason"]]
        assert sorted(ended) == [0, 1]

    async def test_several_prompts_are_answered_in_order(self, engine: Engine) -> None:
        prompts = ["import os", "class Node:"]
        alone = [text_of((await ask(engine, prompt=prompt))["choices"][0]) for prompt in prompts]
        both = await ask(engine, prompt=prompts)
        assert [text_of(choice) for choice in both["choices"]] == alone

    async def test_logprobs_come_one_per_token_or_are_refused(self, engine: Engine) -> None:
        answer = await engine.answer(make_call(Endpoint.CHAT, logprobs=True))
        body = json.loads(await read(answer))
        if Feature.LOGPROBS not in engine.capabilities.features:
            assert (answer.status, body["error"]["param"]) == (400, "logprobs")
            return
        content = body["choices"][0]["logprobs"]["content"]
        assert content
        assert all(entry["logprob"] <= 0 and "token" in entry and "bytes" in entry for entry in content)

    async def test_top_logprobs_come_or_are_refused(self, engine: Engine) -> None:
        answer = await engine.answer(make_call(Endpoint.CHAT, logprobs=True, top_logprobs=2))
        body = json.loads(await read(answer))
        if Feature.TOP_LOGPROBS not in engine.capabilities.features:
            assert (answer.status, body["error"]["param"]) == (400, "top_logprobs")
            return
        assert all(len(entry["top_logprobs"]) == 2 for entry in body["choices"][0]["logprobs"]["content"])

    async def test_what_it_cannot_do_is_refused_by_name(self, engine: Engine) -> None:
        asked = {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "response_format": {"type": "json_object"},
            "logit_bias": {"5": 10},
            "reasoning_effort": "high",
            "functions": [{"name": "f"}],
            "audio": {"voice": "x"},
        }
        for field, value in asked.items():
            answer = await engine.answer(make_call(Endpoint.CHAT, **{field: value}))
            error = json.loads(await read(answer))["error"]
            assert (answer.status, error["param"]) == (400, field)

    async def test_values_out_of_range_are_refused_by_name(self, engine: Engine) -> None:
        wrong: dict[str, Any] = {
            "temperature": 2.1,
            "top_p": 0,
            "n": 1_000_000,
            "max_tokens": -1,
            "presence_penalty": 3,
            "seed": "x",
            "stop": ["a", "b", "c", "d", "e"],
            "min_p": -0.1,
        }
        for field, value in wrong.items():
            answer = await engine.answer(make_call(**{field: value}))
            error = json.loads(await read(answer))["error"]
            assert (answer.status, error["param"]) == (400, field)

    async def test_a_prompt_beyond_the_context_is_refused_with_its_code(self, engine: Engine) -> None:
        context = engine.capabilities.context_tokens
        assert context is not None
        for prompt in ([5] * context, "x y " * 20 * context):
            answer = await engine.answer(make_call(prompt=prompt))
            error = json.loads(await read(answer))["error"]
            assert (answer.status, error["code"]) == (400, "context_length_exceeded")

    async def test_counted_tokens_are_the_tokens_of_usage(self, engine: Engine) -> None:
        for endpoint in ENDPOINTS:
            counted = await engine.count_tokens(make_call(endpoint))
            body = await ask(engine, endpoint)
            assert counted == body["usage"]["prompt_tokens"]
