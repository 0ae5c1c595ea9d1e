"""What a client gets from an embedded engine, beyond the contract that every engine keeps."""

import asyncio
import json

import pytest

from loadwise.decision.facts import Endpoint, Feature
from loadwise.engines.rendering import RenderedEngine
from loadwise.engines.rendering.bodies import REFUSED, WITHOUT_EFFECT, ChatBody, CompletionBody
from loadwise.errors import EngineError
from loadwise.ports import Call, SamplingParams
from loadwise.testing import FakeClock, FakeTokenEngine, Turnstile
from loadwise.testing.engine_contract import ask, make_call, read, stream, text_of


async def refused(engine, call):
    answer = await engine.answer(call)
    error = json.loads(await read(answer))["error"]
    assert 400 <= answer.status < 500
    assert set(error) == {"message", "type", "param", "code"}
    return error


def raw_call(body: bytes, endpoint=Endpoint.COMPLETION):
    return Call(endpoint=endpoint, body=body, request_id="raw-1")


async def test_absent_max_tokens_means_16_for_completions_and_the_context_for_chat(rendered, token_engine):
    await ask(rendered, max_tokens=None)
    assert token_engine.submitted[-1][1].max_tokens == 16
    body = await ask(rendered, Endpoint.CHAT, max_tokens=None)
    assert token_engine.submitted[-1][1].max_tokens == 1024 - body["usage"]["prompt_tokens"]


async def test_max_completion_tokens_wins_over_max_tokens(rendered, token_engine):
    await ask(rendered, Endpoint.CHAT, max_tokens=3, max_completion_tokens=2)
    assert token_engine.submitted[-1][1].max_tokens == 2


async def test_no_tokens_asked_are_no_tokens_made(rendered, token_engine):
    body = await ask(rendered, max_tokens=0, echo=True, prompt="héllo")
    assert (text_of(body["choices"][0]), body["choices"][0]["finish_reason"]) == ("héllo", "length")
    events = await stream(rendered, Endpoint.COMPLETION, max_tokens=0)
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert not token_engine.submitted


async def test_a_stop_token_that_the_vocabulary_lacks_is_refused(rendered):
    end = rendered.tokenizer.vocabulary_size
    error = await refused(rendered, make_call(stop_token_ids=[end]))
    assert (error["param"], str(end) in error["message"]) == ("stop_token_ids", True)
    assert await ask(rendered, stop_token_ids=[end - 1])


async def test_every_prompt_form_is_read(rendered, token_engine):
    for prompt, texts in {
        "one": ("ab", 1),
        "several": (["a", "b"], 2),
        "ids": ([5, 6, 7], 1),
        "lists": ([[5], [6, 7]], 2),
    }.values():
        body = await ask(rendered, prompt=prompt)
        assert len(body["choices"]) == texts
    assert token_engine.submitted[-1][0] == (6, 7)


@pytest.mark.parametrize("prompt", [None, "", 5, {}, [], [[]], ["a", 5], [True], [-1], [99_999], [[5], "a"]])
async def test_other_prompts_are_refused_by_name(rendered, prompt):
    call = make_call(prompt=prompt)
    answer = await rendered.answer(call)
    body = json.loads(await read(answer))
    # The tokenizer puts a begin-of-sequence before an empty text, which makes it one token.
    if prompt == "":
        assert answer.status == 200
    else:
        assert (answer.status, body["error"]["param"]) == (400, "prompt")


async def test_an_echo_comes_before_the_answer(rendered):
    body = await ask(rendered, prompt="ab", echo=True)
    assert text_of(body["choices"][0]) == "abab"
    events = await stream(rendered, Endpoint.COMPLETION, prompt=[5, 6], echo=True)
    echoed = "".join(text_of(event["choices"][0]) for event in events)
    assert len(echoed) % 2 == 0
    assert echoed[: len(echoed) // 2] == echoed[len(echoed) // 2 :]
    assert (await refused(rendered, make_call(echo=True, logprobs=1)))["param"] == "echo"


async def test_best_of_returns_the_likeliest_and_counts_all(rendered):
    body = await ask(rendered, best_of=3, n=1, max_tokens=4, ignore_eos=True)
    assert len(body["choices"]) == 1
    assert body["choices"][0]["logprobs"] is None
    assert body["usage"]["completion_tokens"] == 12
    assert (await refused(rendered, make_call(best_of=1, n=2)))["param"] == "best_of"
    assert (await refused(rendered, make_call(best_of=2, stream=True)))["param"] == "best_of"


async def test_seeds_of_n_answers_differ_but_repeat(rendered, token_engine):
    await ask(rendered, n=3, seed=5)
    assert [sampling.seed for _, sampling in list(token_engine.submitted)[-3:]] == [5, 6, 7]


async def test_completion_logprobs_have_four_equal_lists(rendered):
    body = await ask(rendered, prompt="héllo", logprobs=2, ignore_eos=True)
    logprobs = body["choices"][0]["logprobs"]
    assert {len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")} == {
        8
    }
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    assert all(len(top) == 2 for top in logprobs["top_logprobs"])
    assert "bytes:\\xc3" in logprobs["tokens"]


async def test_streamed_logprobs_are_those_of_the_whole_answer(rendered):
    whole = await ask(rendered, Endpoint.CHAT, logprobs=True, top_logprobs=1)
    events = await stream(rendered, Endpoint.CHAT, logprobs=True, top_logprobs=1)
    parts = [e["choices"][0]["logprobs"]["content"] for e in events if e["choices"][0]["logprobs"]]
    assert [entry for part in parts for entry in part] == whole["choices"][0]["logprobs"]["content"]


async def test_logprobs_end_where_a_stop_string_cuts_the_text(rendered):
    body = await ask(rendered, prompt="abcdef", logprobs=0, stop=["de"])
    assert body["choices"][0]["text"] == "abc"
    assert body["choices"][0]["logprobs"]["tokens"] == ["<s>", "a", "b", "c"]


async def test_continuous_usage_grows_chunk_by_chunk(rendered):
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = await stream(rendered, Endpoint.CHAT, stream_options=options)
    counts = [e["usage"]["completion_tokens"] for e in events if e.get("usage")]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


async def test_a_chat_reads_text_parts_and_developer_roles(rendered, token_engine):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "x"},
        {"role": "assistant", "content": None},
    ]
    await ask(rendered, Endpoint.CHAT, messages=messages, chat_template_kwargs={"unused": 1})
    prompt = rendered.tokenizer.decode(token_engine.submitted[-1][0])
    assert prompt == "system: be brief\nuser: ab\nassistant: \nassistant: "
    await ask(rendered, Endpoint.CHAT, messages=messages, add_generation_prompt=False)
    assert rendered.tokenizer.decode(token_engine.submitted[-1][0]) == prompt.removesuffix("assistant: ")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": [7]},
        {"role": "user", "content": 5},
        {"role": "user"},
        {"role": "nobody", "content": "x"},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
    ],
)
async def test_messages_it_cannot_read_are_refused_by_name(rendered, message):
    error = await refused(rendered, make_call(Endpoint.CHAT, messages=[message]))
    assert error["param"] == "messages"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b'{"prompt": "\xff"}', b'{"x":' + b"[" * 5000, b'{"prompt": NaN}', b"{}"],
)
async def test_what_is_no_request_gets_a_400(rendered, body):
    assert await refused(rendered, raw_call(body))


async def test_a_missing_field_is_named(rendered):
    assert (await refused(rendered, raw_call(b"{}")))["param"] == "prompt"
    assert (await refused(rendered, raw_call(b"{}", Endpoint.CHAT)))["param"] == "messages"


async def test_unknown_fields_are_refused_and_harmless_ones_accepted(rendered):
    assert (await refused(rendered, make_call(max_token=5)))["param"] == "max_token"
    await ask(rendered, Endpoint.CHAT, tools=None, response_format={"type": "text"}, logit_bias={})
    await ask(rendered, Endpoint.CHAT, **dict.fromkeys(WITHOUT_EFFECT, "x"))


@pytest.mark.parametrize("name", sorted(set(REFUSED) - {"echo", "best_of"}))
async def test_every_refused_field_is_refused_by_name(rendered, name):
    assert (await refused(rendered, make_call(Endpoint.CHAT, **{name: {"some": "value"}})))["param"] == name


def test_no_field_is_both_honoured_and_refused():
    honoured = set(ChatBody.__struct_fields__) & set(CompletionBody.__struct_fields__)
    assert not honoured & set(REFUSED)
    assert not set(WITHOUT_EFFECT) & (set(REFUSED) | honoured)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"logprobs": 6}, "logprobs"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
async def test_contradictions_are_refused_by_name(rendered, fields, param):
    assert (await refused(rendered, make_call(**fields)))["param"] == param


async def test_top_logprobs_need_logprobs(rendered):
    assert (await refused(rendered, make_call(Endpoint.CHAT, top_logprobs=2)))["param"] == "top_logprobs"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"seed": 1}, "seed"),
        ({"top_k": 5}, "top_k"),
        ({"min_p": 0.5}, "min_p"),
        ({"stop_token_ids": [5]}, "stop_token_ids"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"min_tokens": 1}, "min_tokens"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"repetition_penalty": 1.5}, "repetition_penalty"),
        ({"logprobs": 0}, "logprobs"),
        ({"best_of": 2}, "best_of"),
    ],
)
async def test_an_engine_without_a_feature_refuses_its_field(tokenizer_folder, clock, fields, param):
    engine = RenderedEngine(FakeTokenEngine(features=frozenset()), tokenizer_folder, "t", "t-0", clock)
    assert (await refused(engine, make_call(**fields)))["param"] == param


async def test_capabilities_are_the_token_engine_s_and_what_rendering_adds(rendered):
    capabilities = rendered.capabilities
    assert {Feature.N, Feature.ECHO, Feature.BEST_OF, Feature.SEED} <= capabilities.features
    assert Feature.TOOLS not in capabilities.features
    assert capabilities.tokenizer_fingerprint == rendered.tokenizer.fingerprint
    assert capabilities.embedded


async def test_long_bodies_are_read_too(rendered, token_engine):
    text = "word " * 150
    await ask(rendered, prompt=[text] * 8, max_tokens=1)
    assert len(token_engine.submitted[-1][0]) == len(text) + 1


async def test_more_prompts_than_allowed_are_refused(rendered):
    assert (await refused(rendered, make_call(prompt=["a"] * 1025)))["param"] == "prompt"


async def test_prompts_times_n_are_bounded(rendered):
    error = await refused(rendered, make_call(prompt=["a"] * 1024, n=2))
    assert error["param"] == "n"


async def test_counting_an_unreadable_body_says_unknown(rendered):
    assert await rendered.count_tokens(raw_call(b"{")) is None
    assert await rendered.count_tokens(make_call(prompt=["a", "bcd"])) == 4
    assert await rendered.count_tokens(make_call(prompt=[5] * 2000)) == 2000


async def test_a_full_queue_takes_none_of_a_request_s_sequences(tokenizer_folder, clock):
    fake = FakeTokenEngine(capacity=1, queue_limit=2)
    engine = RenderedEngine(fake, tokenizer_folder, "t", "t-0", clock)
    occupant = fake.submit((1,), SamplingParams(max_tokens=1))
    before = fake.reading()
    error = await refused(engine, make_call(n=3))
    assert error["code"] == "queue_full"
    assert fake.reading() == before
    occupant.cancel()


@pytest.mark.parametrize(("fields", "param"), [({"n": 4}, "n"), ({"prompt": ["a"] * 4}, "prompt")])
async def test_what_could_never_be_queued_is_refused_for_good(tokenizer_folder, clock, fields, param):
    engine = RenderedEngine(FakeTokenEngine(capacity=1, queue_limit=2), tokenizer_folder, "t", "t-0", clock)
    error = await refused(engine, make_call(**fields))
    assert error["param"] == param
    assert "room for 3" in error["message"]


@pytest.fixture
async def paced(tokenizer_folder):
    turnstile = Turnstile()
    fake = FakeTokenEngine(pace=turnstile)
    engine = RenderedEngine(fake, tokenizer_folder, "t", "t-0", FakeClock())
    await engine.start()
    yield engine, fake, turnstile
    await engine.close()


async def test_an_engine_that_dies_before_the_first_token_raises(paced):
    engine, fake, _ = paced
    waiting = [asyncio.create_task(engine.answer(make_call(stream=s, n=2))) for s in (True, False)]
    while len(fake.submitted) < 4:
        await asyncio.sleep(0)
    fake.fail("it died")
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, EngineError)
    with pytest.raises(EngineError):
        await engine.answer(make_call())


async def test_an_engine_that_dies_in_a_stream_sends_an_error_and_done(paced):
    engine, fake, turnstile = paced
    turnstile.allow(2)
    answer = await engine.answer(make_call(stream=True))
    fake.fail("it died")
    events = (await read(answer)).split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert json.loads(events[-3].removeprefix(b"data: "))["error"]["message"] == "it died"
    assert answer.progress.failed


async def test_the_first_token_is_there_when_a_stream_is_answered(paced):
    engine, _, turnstile = paced
    task = asyncio.create_task(engine.answer(make_call(stream=True)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    # Begin-of-sequence, which is no text, and a letter.
    turnstile.allow(2)
    answer = await task
    assert answer.progress.first_token_s == 1000.0
    await answer.chunks.aclose()


async def test_a_stop_string_frees_the_place_at_once(paced):
    engine, fake, turnstile = paced
    turnstile.allow(4)
    body = await ask(engine, prompt="abcdef", stop="c", ignore_eos=True, max_tokens=500)
    assert text_of(body["choices"][0]) == "ab"
    assert fake.reading().running_requests == 0
