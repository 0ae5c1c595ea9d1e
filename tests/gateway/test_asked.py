"""A refusal names the field that the client sent, whatever the feature behind it is called."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from loadwise.decision.facts import Endpoint, Feature
from loadwise.errors import RequestError
from loadwise.gateway.asked import UNSUPPORTED, in_the_clients_words
from loadwise.gateway.fields import decode

TURNS = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.test/b.png"}}]}]


def refusal(feature: Feature, **fields: Any) -> RequestError:
    endpoint = Endpoint.CHAT if "messages" in fields else Endpoint.COMPLETION
    body = {"model": "auto", **({} if "messages" in fields else {"prompt": "a"}), **fields}
    said = RequestError(f"{feature.value!r} is not supported.", param=feature.value, code=UNSUPPORTED)
    return in_the_clients_words(said, decode(endpoint, msgspec.json.encode(body)))


@pytest.mark.parametrize(
    ("feature", "fields", "param", "words"),
    [
        (Feature.TOP_LOGPROBS, {"logprobs": 2}, "logprobs", "values above 0"),
        (Feature.MEDIA, {"messages": TURNS}, "messages", "images"),
        (Feature.MEDIA, {"messages": TURNS, "audio": {"voice": "x"}}, "audio", "answers in audio"),
        (Feature.TOKEN_IDS, {"prompt": [1, 2]}, "prompt", "token ids"),
        (Feature.RESPONSE_FORMAT, {"guided_regex": "a+"}, "guided_regex", "structured output"),
        (Feature.PENALTIES, {"presence_penalty": 1}, "presence_penalty", "penalties"),
        (
            Feature.STREAMED_TOOLS,
            {"messages": TURNS, "tools": [{}], "stream": True},
            "stream",
            "calls of tools",
        ),
        (Feature.GREEDY_CHOICES, {"n": 2, "temperature": 0}, "n", "greedy sampling"),
    ],
)
def test_the_field_that_asked_is_named_with_what_is_missing(feature, fields, param, words):
    error = refusal(feature, **fields)
    assert (error.status, error.param, error.code) == (400, param, UNSUPPORTED)
    assert str(error).startswith(param)
    assert words in str(error)
    assert "'auto'" in str(error)


@pytest.mark.parametrize(
    ("feature", "fields"),
    [
        (Feature.TOOLS, {"messages": TURNS}),
        (Feature.TOP_LOGPROBS, {"messages": TURNS, "logprobs": True, "top_logprobs": 1}),
        (Feature.RESPONSE_FORMAT, {"response_format": {"type": "json_object"}}),
        (Feature.PENALTIES, {"frequency_penalty": 1, "presence_penalty": 1}),
    ],
)
def test_a_feature_with_its_fields_own_name_is_left_as_it_is(feature, fields):
    error = refusal(feature, **fields)
    assert error.param == feature.value
    assert str(error) == f"{feature.value!r} is not supported."


def test_other_refusals_are_left_as_they_are():
    fields = decode(Endpoint.COMPLETION, b'{"model":"auto","prompt":"a","logprobs":2}')
    other = RequestError("too long", param="top_logprobs", code="context_length_exceeded")
    assert in_the_clients_words(other, fields) is other
