"""What decisions do not change arrives at the engine byte for byte."""

from __future__ import annotations

import asyncio
import json
import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadwise.gateway.body import edited

KNOWN = {
    "n": st.integers(1, 128),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "max_tokens": st.integers(1, 2**31 - 1),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.lists(st.text(max_size=5), max_size=4),
    "stream_options": st.just({"include_usage": True}),
    "logit_bias": st.dictionaries(st.integers(0, 10**6).map(str), st.floats(-100, 100), max_size=3),
    "tools": st.just(
        [{"type": "function", "function": {"name": "f", "parameters": {"a": [1, {"b": None}]}}}]
    ),
    "user": st.text(),
}
texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
unknown = st.dictionaries(texts.map(lambda name: "x_" + name), values, max_size=4)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}),
    min_size=1,
    max_size=3,
)


@st.composite
def bodies(draw) -> bytes:
    known = draw(st.fixed_dictionaries({}, optional=KNOWN))
    fields = {"model": "auto", "messages": draw(messages), **draw(unknown), **known}
    names = draw(st.permutations(list(fields)))
    shuffled = {name: fields[name] for name in names}
    ascii_only = draw(st.booleans())
    indent = draw(st.sampled_from([None, 1]))
    text = json.dumps(shuffled, ensure_ascii=ascii_only, indent=indent, allow_nan=False)
    return (draw(st.sampled_from(["", " \n"])) + text).encode()


@pytest.fixture(scope="module")
def site(site_of, scripted):
    site = site_of(fast=scripted())
    site.engine = site.director.engines["fast"]
    return site


def arrived(site, body: bytes, changes: dict) -> bytes:
    site.director.changes = changes
    reply = asyncio.run(site.ask("POST", "/v1/chat/completions", body))
    assert reply.status == 200, reply.body
    return site.engine.calls.pop().body


def raw_values(body: bytes) -> dict[str, bytes]:
    return {name: bytes(raw) for name, raw in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items()}


@given(body=bodies())
@settings(deadline=None)
def test_without_changes_not_a_byte_changes(site, body):
    assert arrived(site, body, {}) == body


@given(body=bodies(), value=st.integers(1, 4096))
@settings(deadline=None)
def test_a_change_leaves_every_other_value_byte_for_byte(site, body, value):
    got = arrived(site, body, {"max_tokens": value})
    assert raw_values(got) == {**raw_values(body), "max_tokens": str(value).encode()}
    if "max_tokens" not in raw_values(body):
        assert re.sub(rb'"max_tokens":\d+,', b"", got, count=1) == body


def test_integers_stay_integers_and_names_that_are_escaped_are_found():
    body = b'{"max\\u005ftokens": 9, "model": "auto"}'
    assert msgspec.json.decode(edited(body, {"max_tokens": 5}, frozenset({"max_tokens"}))) == {
        "max_tokens": 5,
        "model": "auto",
    }


async def test_nothing_of_the_clients_credentials_goes_on(site_of, scripted):
    engine = scripted()
    site = site_of(fast=engine)
    await site.ask(
        "POST",
        "/v1/chat/completions",
        {"model": "auto", "messages": [{"role": "user", "content": "hi"}]},
        headers=[
            ("authorization", "Bearer secret"),
            ("cookie", "a=b"),
            ("x-loadwise-admin-key", "secret"),
            ("traceparent", "00-abc"),
            ("x-session-id", "s1"),
        ],
    )
    assert engine.calls[0].headers == {"traceparent": "00-abc", "x-session-id": "s1"}


async def test_an_engines_headers_go_on_but_for_those_of_its_connection(site_of, scripted):
    engine = scripted(
        headers=[
            ("Content-Type", "application/json"),
            ("Connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("Transfer-Encoding", "chunked"),
            ("Set-Cookie", "a=b"),
            ("x-loadwise-member", "liar"),
            ("x-split", "a\r\nevil: 1"),
            ("bad name", "1"),
            ("openai-processing-ms", "12"),
        ]
    )
    site = site_of(fast=engine)
    reply = await site.ask("POST", "/v1/completions", {"model": "auto", "prompt": "a"})
    assert reply.headers["openai-processing-ms"] == "12"
    assert reply.headers["x-loadwise-member"] == "fast"
    assert not {"connection", "x-hop", "transfer-encoding", "set-cookie", "x-split", "bad name"} & set(
        reply.headers
    )


async def test_an_engines_error_keeps_its_status_and_body(site_of, scripted):
    engine = scripted(script=[b'{"error":{"message":"no"}}'], status=418)
    site = site_of(fast=engine)
    reply = await site.ask("POST", "/v1/completions", {"model": "auto", "prompt": "a", "stream": True})
    assert (reply.status, reply.body) == (418, b'{"error":{"message":"no"}}')
    assert [outcome.status for outcome in site.director.outcomes] == [418]
    assert [outcome.ending for outcome in site.director.outcomes] == ["failed"]


@given(pieces=st.lists(st.binary(min_size=1, max_size=20), max_size=20))
@settings(deadline=None)
def test_a_streams_bytes_arrive_unchanged(site, pieces):
    site.engine.script = pieces
    site.director.outcomes.clear()
    reply = asyncio.run(site.ask("POST", "/v1/completions", {"model": "auto", "prompt": "a", "stream": True}))
    assert reply.body == b"".join(pieces)
    assert [outcome.ending for outcome in site.director.outcomes] == ["succeeded"]
