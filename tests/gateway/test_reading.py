"""From a body to facts: features, explicit values, conversations and preferences."""

from __future__ import annotations

import pytest

from loadwise.decision.facts import ANONYMOUS, Endpoint, Feature, Principal, RequestFacts
from loadwise.decision.numbers import CHOSEN
from loadwise.errors import RequestError
from loadwise.gateway.asgi import Exchange
from loadwise.gateway.fields import ChatFields, CompletionFields, PassedFields, decode
from loadwise.gateway.preferences import preference
from loadwise.gateway.reading import read_facts
from loadwise.ports import PromptSize

SIZE = PromptSize(exact=3, bound=9)


def facts(endpoint: Endpoint, body: bytes, headers=(), principal=ANONYMOUS) -> RequestFacts:
    scope = {"headers": [(name.encode(), value.encode()) for name, value in headers]}

    async def nothing(*_: object) -> dict:
        return {}

    return read_facts(endpoint, decode(endpoint, body), Exchange(scope, nothing, nothing, principal), SIZE)


def chat(rest: str, **more) -> RequestFacts:
    body = f'{{"model":"auto","messages":[{{"role":"user","content":"hi"}}]{rest}}}'
    return facts(Endpoint.CHAT, body.encode(), **more)


def text(rest: str, prompt: str = '"hi"', **more) -> RequestFacts:
    return facts(Endpoint.COMPLETION, f'{{"model":"auto","prompt":{prompt}{rest}}}'.encode(), **more)


def turns(*pairs: tuple[str, str], **more) -> RequestFacts:
    messages = ",".join(f'{{"role":"{role}","content":"{content}"}}' for role, content in pairs)
    return facts(Endpoint.CHAT, f'{{"model":"auto","messages":[{messages}]}}'.encode(), **more)


@pytest.mark.parametrize(
    ("rest", "features"),
    [
        ("", set()),
        (',"tools":[{"type":"function"}]', {Feature.TOOLS}),
        (',"tools":[]', set()),
        (',"tools":[{}],"tool_choice":"auto"', {Feature.TOOLS}),
        (',"tools":[{}],"tool_choice":null', {Feature.TOOLS}),
        (',"tools":[{}],"tool_choice":"required"', {Feature.TOOL_CHOICE}),
        (',"tools":[{}],"tool_choice":{"type":"function"}', {Feature.TOOL_CHOICE}),
        (',"tool_choice":"required"', set()),
        (',"tools":[{}],"stream":true', {Feature.TOOLS, Feature.STREAMED_TOOLS}),
        (',"tools":[{}],"stream":true,"tool_choice":"none"', {Feature.TOOL_CHOICE}),
        (',"stream":true', set()),
        (',"priority":0', set()),
        (',"priority":-3', {Feature.PRIORITY}),
        (',"thinking_token_budget":0', {Feature.THINKING_TOKEN_BUDGET}),
        (',"thinking_budget":5', {Feature.THINKING_BUDGET}),
        (',"max_thinking_tokens":5', {Feature.MAX_THINKING_TOKENS}),
        (',"thinking_budget":null', set()),
        (',"response_format":{"type":"text"}', set()),
        (',"response_format":null', set()),
        (',"response_format":{"type":"json_object"}', {Feature.RESPONSE_FORMAT}),
        (',"guided_json":{"a":1}', {Feature.RESPONSE_FORMAT}),
        (',"structured_outputs":{"regex":"a"}', {Feature.RESPONSE_FORMAT}),
        (',"logit_bias":{"5":1}', {Feature.LOGIT_BIAS}),
        (',"logit_bias":{}', set()),
        (',"reasoning_effort":"low"', {Feature.REASONING_EFFORT}),
        (',"logprobs":true', {Feature.LOGPROBS}),
        (',"logprobs":true,"top_logprobs":3', {Feature.LOGPROBS, Feature.TOP_LOGPROBS}),
        (',"n":2', {Feature.N}),
        (',"n":1', set()),
        (',"n":2,"temperature":0.5', {Feature.N}),
        (',"n":2,"temperature":0', {Feature.N, Feature.GREEDY_CHOICES}),
        (',"n":1,"temperature":0', set()),
        (',"seed":0', {Feature.SEED}),
        (',"top_k":40', {Feature.TOP_K}),
        (',"top_k":-1', set()),
        (',"min_p":0.1', {Feature.MIN_P}),
        (',"stop_token_ids":[1]', {Feature.STOP_TOKEN_IDS}),
        (',"ignore_eos":true', {Feature.IGNORE_EOS}),
        (',"min_tokens":3', {Feature.MIN_TOKENS}),
        (',"presence_penalty":0.5', {Feature.PENALTIES}),
        (',"frequency_penalty":0', set()),
        (',"repetition_penalty":1.1', {Feature.REPETITION_PENALTY}),
        (',"repetition_penalty":1', set()),
        (',"audio":{"voice":"x"}', {Feature.MEDIA}),
    ],
)
def test_features_of_a_chat(rest, features):
    assert chat(rest).features == features


@pytest.mark.parametrize(
    ("turn", "needed"),
    [
        ('{"role":"tool","tool_call_id":"1","content":"3"}', True),
        ('{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]}', True),
        ('{"role":"assistant","content":"a","tool_calls":[]}', False),
        ('{"role":"assistant","content":"a","tool_calls":null}', False),
        ('{"role":"user","content":"a"}', False),
    ],
)
def test_turns_that_call_tools_and_their_results_are_seen(turn, needed):
    body = f'{{"model":"auto","messages":[{{"role":"user","content":"a"}},{turn}]}}'
    assert (Feature.TOOL_TURNS in facts(Endpoint.CHAT, body.encode()).features) is needed


@pytest.mark.parametrize(
    ("rest", "prompt", "features"),
    [
        ("", '"hi"', set()),
        ("", '["a", "b"]', set()),
        ("", " [ 1, 2]", {Feature.TOKEN_IDS}),
        ("", "[[1], [2]]", {Feature.TOKEN_IDS}),
        (',"best_of":3', '"hi"', {Feature.BEST_OF}),
        (',"echo":true', '"hi"', {Feature.ECHO}),
        (',"suffix":"end"', '"hi"', {Feature.SUFFIX}),
        (',"logprobs":0', '"hi"', {Feature.LOGPROBS}),
        (',"logprobs":1', '"hi"', {Feature.LOGPROBS, Feature.TOP_LOGPROBS}),
        (',"logprobs":4', '"hi"', {Feature.LOGPROBS, Feature.TOP_LOGPROBS}),
    ],
)
def test_features_of_a_completion(rest, prompt, features):
    assert text(rest, prompt).features == features


@pytest.mark.parametrize(
    ("content", "media"),
    [
        ('[{"type":"text","text":"a"}]', False),
        ('[{"type":"image_url","image_url":{"url":"http://169.254.169.254/"}}]', True),
        ("null", False),
    ],
)
def test_media_is_seen_in_content_parts(content, media):
    body = f'{{"model":"auto","messages":[{{"role":"user","content":{content}}}]}}'
    assert (Feature.MEDIA in facts(Endpoint.CHAT, body.encode()).features) is media


def test_explicit_values_are_the_clients_own_and_nothing_else():
    rest = ',"max_tokens":7,"temperature":0,"top_p":null,"n":2,"thinking_budget":9,"stop":["a"],"user":"u"'
    assert chat(rest).explicit == {"max_tokens": 7, "temperature": 0.0, "n": 2, "thinking_budget": 9}


def test_a_first_turn_continues_nothing_but_can_be_found_by_the_second():
    first = turns(("system", "be kind"), ("user", "hi"))
    second = turns(("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "more"))
    assert not first.continues
    assert first.conversation_id == second.conversation_id


def test_a_conversation_keeps_its_id_while_it_grows():
    second = turns(("user", "hi"), ("assistant", "hello"), ("user", "more"))
    third = turns(
        ("user", "hi"), ("assistant", "hello"), ("user", "more"), ("assistant", "yes"), ("user", "on")
    )
    assert second.continues
    assert second.conversation_id == third.conversation_id
    assert second.conversation_id != turns(("user", "hi!"), ("assistant", "hello")).conversation_id


def test_parts_of_an_opening_do_not_run_into_one_another():
    one = turns(("user", "a"), ("user", "b"), ("assistant", "x"))
    other = turns(("user", "a"), ("system", "b"), ("assistant", "x"))
    assert one.conversation_id != other.conversation_id


@pytest.mark.parametrize("how", ["header", "field"])
def test_a_session_ties_a_first_turn_to_its_conversation(how):
    headers = [("x-session-id", "s1")] if how == "header" else []
    rest = "" if how == "header" else ',"session_id":"s1"'
    one, other = chat(rest, headers=headers), text(rest, headers=headers)
    assert one.continues
    assert one.conversation_id == other.conversation_id
    assert "s1" not in one.conversation_id


def test_keys_do_not_share_conversations():
    pair = (("user", "hi"), ("assistant", "hello"))
    blue, red = (turns(*pair, principal=Principal(key_id=name)) for name in ("blue", "red"))
    assert blue.conversation_id != red.conversation_id


def test_preferences_come_as_words_or_numbers():
    request = chat("", headers=[("x-loadwise-quality", "High"), ("x-loadwise-speed", "0.25")])
    assert (request.quality_preference, request.speed_preference) == (1.0, 0.25)
    assert chat("").quality_preference is None


@pytest.mark.parametrize("value", ["best", "1.1", "-0.1", "nan", "", True, None, [], 2])
def test_other_preferences_are_refused_by_name(value):
    with pytest.raises(RequestError, match="speed is low, medium, high") as caught:
        preference(value, "speed")
    assert caught.value.param == "speed"


@pytest.mark.parametrize(
    ("value", "number"), [("low", 0.0), ("medium", 0.5), ("high", 1.0), (0, 0.0), (1, 1.0)]
)
def test_preference_words(value, number):
    assert preference(value, "quality") == number


@pytest.mark.parametrize(("value", "off"), [("off", True), ("on", False)])
def test_off_is_said_in_a_header(value, off):
    assert chat("", headers=[("x-loadwise", value)]).off is off


def test_every_number_that_a_ceiling_may_bind_is_read_of_requests() -> None:
    read = {
        name for fields in (ChatFields, CompletionFields, PassedFields) for name in fields.__struct_fields__
    }
    assert set(CHOSEN) <= read
