"""Bad input gets a clear answer in OpenAI's shape and reaches no engine."""

from __future__ import annotations

import json
import threading

import pytest

from loadwise.gateway.body import check_text, deeper_than
from loadwise.settings import Settings

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
TURNS = [{"role": "user", "content": "hi"}]


def chat(**fields):
    return {"model": "auto", "messages": TURNS, **fields}


def text(**fields):
    return {"model": "auto", "prompt": "hi", **fields}


WRONG_FIELDS = [
    (CHAT, {"messages": TURNS}, "model"),
    (CHAT, {"model": "auto"}, "messages"),
    (CHAT, chat(model=3), "model"),
    (CHAT, chat(model=""), "model"),
    (CHAT, chat(messages=[]), "messages"),
    (CHAT, chat(messages={}), "messages"),
    (CHAT, chat(messages=[{"content": "x"}]), "messages[0].role"),
    (CHAT, chat(messages=[{"role": "wizard", "content": "x"}]), "messages[0].role"),
    (CHAT, chat(messages=[{"role": "user", "content": [{"type": 3}]}]), "messages[0].content[0].type"),
    (CHAT, chat(n=10**6), "n"),
    (CHAT, chat(n=0), "n"),
    (CHAT, chat(n=1.5), "n"),
    (CHAT, chat(n="2"), "n"),
    (CHAT, chat(max_tokens=0), "max_tokens"),
    (CHAT, chat(max_tokens=-1), "max_tokens"),
    (CHAT, chat(max_tokens=1e3), "max_tokens"),
    (CHAT, chat(max_completion_tokens=True), "max_completion_tokens"),
    (CHAT, chat(temperature=2.1), "temperature"),
    (CHAT, chat(temperature="hot"), "temperature"),
    (CHAT, chat(top_p=-0.1), "top_p"),
    (CHAT, chat(top_k=-2), "top_k"),
    (CHAT, chat(min_p=1.1), "min_p"),
    (CHAT, chat(presence_penalty=3), "presence_penalty"),
    (CHAT, chat(frequency_penalty=-3), "frequency_penalty"),
    (CHAT, chat(repetition_penalty=0), "repetition_penalty"),
    (CHAT, chat(seed=2**63), "seed"),
    (CHAT, chat(stream="yes"), "stream"),
    (CHAT, chat(stream_options=[]), "stream_options"),
    (CHAT, chat(logprobs=1), "logprobs"),
    (CHAT, chat(top_logprobs=21, logprobs=True), "top_logprobs"),
    (CHAT, chat(top_logprobs=2), "top_logprobs"),
    (CHAT, chat(functions=[{"name": "f"}]), "functions"),
    (CHAT, chat(function_call="auto"), "function_call"),
    (CHAT, chat(response_format={"type": 3}), "response_format.type"),
    (CHAT, chat(response_format="json"), "response_format"),
    (TEXT, {"model": "auto"}, "prompt"),
    (TEXT, text(prompt=None), "prompt"),
    (TEXT, text(prompt=3), "prompt"),
    (TEXT, text(prompt=[]), "prompt"),
    (TEXT, text(logprobs=6), "logprobs"),
    (TEXT, text(best_of=21), "best_of"),
    (TEXT, text(echo="no"), "echo"),
    (TEXT, text(max_tokens=-1), "max_tokens"),
]

WRONG_BODIES = [
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b"nonsense", "invalid_json"),
    (b'{"model": nul}', "invalid_json"),
    (b"[1, 2]", "invalid_json"),
    (b'"text"', "invalid_json"),
    (b"null", "invalid_json"),
    (b'{"model": "\xff"}', "invalid_utf8"),
    (b'{"x": ' + b"[" * 65 + b"]" * 65 + b"}", "too_deep"),
    (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep"),
    (b"[" * 100_000, "invalid_json"),
]


async def test_a_wrong_role_is_answered_with_those_that_there_are(site_of):
    reply = await site_of().ask("POST", CHAT, chat(messages=[{"role": "wizard", "content": "x"}]))
    assert "'wizard'" in reply.error["message"]
    assert "Allowed: developer, system, user, assistant, tool, function." in reply.error["message"]


@pytest.mark.parametrize(("path", "body", "param"), WRONG_FIELDS)
async def test_a_wrong_field_is_named(site_of, path, body, param):
    site = site_of()
    reply = await site.ask("POST", path, body)
    assert reply.status == 400
    assert reply.error["param"] == param
    assert param.split(".")[-1].split("[")[0] in reply.error["message"]
    assert not site.director.requests


@pytest.mark.parametrize("path", [CHAT, TEXT, "/v1/optimization/configure"])
@pytest.mark.parametrize(("body", "code"), WRONG_BODIES)
async def test_a_body_that_is_no_object_is_refused(site_of, path, body, code):
    site = site_of()
    reply = await site.ask("POST", path, body)
    assert (reply.status, reply.error["code"]) == (400, code)
    assert "x-request-id" in reply.headers
    assert not site.director.requests
    assert site.control.commands == []


async def test_what_follows_the_object_is_refused(site_of):
    body = b'{"model":"auto","prompt":"a"} trailing'
    reply = await site_of().ask("POST", TEXT, body)
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_above_the_limit_is_refused(site_of, declared):
    site = site_of(Settings(body_limit_bytes=1024))
    headers = [("content-length", "2000")] if declared else []
    reply = await site.ask("POST", CHAT, b"x" * (1 if declared else 2000), headers=headers)
    assert (reply.status, reply.error["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("name", ["x-loadwise", "x-loadwise-quality", "x-loadwise-speed"])
async def test_a_wrong_header_is_named(site_of, name):
    reply = await site_of().ask("POST", CHAT, chat(), headers=[(name, "sometimes")])
    assert (reply.status, reply.error["param"]) == (400, name)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/moderations", "/v1/rerank", "/v1/models/", "/v2/models"])
async def test_unknown_paths_are_not_found(site_of, path):
    reply = await site_of().ask("GET", path)
    assert (reply.status, reply.error["code"]) == (404, "not_found")


async def test_a_wrong_method_names_the_right_one(site_of):
    reply = await site_of().ask("GET", CHAT)
    assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"


async def test_a_bug_in_an_engine_shows_no_traceback(site_of, scripted):
    site = site_of(fast=scripted(refusal=KeyError("secret detail")))
    reply = await site.ask("POST", CHAT, chat())
    assert (reply.status, reply.error["code"]) == (500, "internal_error")
    assert b"secret" not in reply.body
    assert [outcome.ending for outcome in site.director.outcomes] == ["failed"]


async def test_null_is_as_good_as_absent(site_of):
    nulls = dict.fromkeys(["n", "temperature", "max_tokens", "stream", "tools", "logprobs", "seed", "stop"])
    site = site_of()
    assert (await site.ask("POST", CHAT, chat(**nulls))).status == 200
    assert site.director.requests[0].explicit == {}
    assert site.director.requests[0].features == frozenset()


@pytest.mark.parametrize("depth", [63, 64, 65, 200])
@pytest.mark.parametrize("noise", ['"]]]]"', r'"\"[[[["', r'"\\"', '"' + "[" * 300_000 + '"'])
def test_depth_is_counted_outside_strings(depth, noise):
    body = ("[" + noise + ",") * depth + "1" + "]" * depth
    json.loads(body)
    assert deeper_than(body.encode(), 64) is (depth > 64)


def test_wide_is_not_deep():
    assert not deeper_than(json.dumps([[{}] * 1000] * 10).encode(), 64)


@pytest.mark.parametrize(("letters", "aside"), [(10, False), (400_000, True)])
async def test_only_large_bodies_are_checked_off_the_event_loop(monkeypatch, letters, aside):
    threads = []

    def watched(text, limit):
        threads.append(threading.get_ident())
        return deeper_than(text, limit)

    monkeypatch.setattr("loadwise.gateway.body.deeper_than", watched)
    await check_text(json.dumps({"text": "ä" * letters}, ensure_ascii=False).encode())
    assert len(threads) == 1
    assert (threads[0] != threading.get_ident()) is aside
