"""What a server can do is seen within a small budget, and neither invented nor missed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadwise.clock import SystemClock
from loadwise.decision.facts import Endpoint, Feature
from loadwise.engines.openai_http import OpenAIEngine
from loadwise.engines.probing import MOST_REQUESTS, MOST_TOKENS, Probed, Prober
from loadwise.errors import EngineError
from loadwise.testing import Behaviour, StubUpstream
from loadwise.testing.profiles import THINKING, Profile

ANSWERS = Path(__file__).parent / "answers"
# Their effect is not seen by a server that neither describes its fields nor refuses wrong types.
ONLY_LISTED = {Feature.BEST_OF, Feature.SUFFIX, Feature.PRIORITY}
# Seen together only.
PAIRED = {Feature.MIN_TOKENS, Feature.IGNORE_EOS}
TOOLS = {Feature.TOOLS, Feature.TOOL_CHOICE, Feature.STREAMED_TOOLS, Feature.TOOL_TURNS}
CHOICES = {Feature.N, Feature.LOGPROBS, Feature.TOP_LOGPROBS}
# What only a call that is required shows; several choices, and the most likely tokens, show in pairs.
SHOWN_BY = {Feature.TOOLS: Feature.TOOL_CHOICE, Feature.STREAMED_TOOLS: Feature.TOOL_CHOICE,
            Feature.GREEDY_CHOICES: Feature.N, Feature.TOP_LOGPROBS: Feature.LOGPROBS}  # fmt: skip
# What is not asked once the requests are used up.
LAST = {Feature.TOKEN_IDS, Feature.ECHO, Feature.BEST_OF, Feature.SUFFIX, *PAIRED}
# What a strict server is not asked while no answer of it was seen.
UNANSWERED = {Feature.MEDIA, *LAST, *THINKING}


def hidden(features: set[Feature], *, strict: bool, described: bool, all_asked: bool) -> set[Feature]:
    """What a server of these features need not show."""
    found = set() if described else set(ONLY_LISTED)
    found |= set() if all_asked else LAST
    found |= set() if features >= PAIRED else PAIRED
    found |= {feature for feature, by in SHOWN_BY.items() if by not in features}
    # A strict server refuses a request for what it has together with what it lacks.
    found |= {*CHOICES, Feature.GREEDY_CHOICES} if strict and not features >= CHOICES else set()
    found |= TOOLS if strict and Feature.STREAMED_TOOLS not in features else set()
    return found | UNANSWERED if strict else found


async def probed(profile: Profile) -> Probed:
    async def ask(method: str, path: str, body: Any) -> tuple[int, bytes]:
        return profile.answer(method, path, body)

    return await Prober(ask, "m").probe()


@example({Feature.BEST_OF, Feature.IGNORE_EOS, Feature.MEDIA, Feature.MIN_TOKENS}, True, True)
@example({Feature.BEST_OF, Feature.MEDIA, Feature.RESPONSE_FORMAT, Feature.LOGIT_BIAS}, True, True)
@given(st.sets(st.sampled_from(list(Feature))), st.booleans(), st.booleans())
def test_every_feature_is_told_and_none_invented(features, strict: bool, described: bool) -> None:
    features.discard(Feature.TOOL_TURNS)
    # No server makes calls that it does not take back.
    features |= {Feature.TOOL_TURNS} if Feature.TOOL_CHOICE in features else set()
    profile = Profile(frozenset(features), strict=strict, described=described)
    seen = asyncio.run(probed(profile))
    assert seen.features <= features
    all_asked = seen.requests < MOST_REQUESTS
    assert features - seen.features <= hidden(
        features, strict=strict, described=described, all_asked=all_asked
    )
    assert seen.requests <= MOST_REQUESTS
    assert seen.generated_tokens <= MOST_TOKENS


def test_tokenizers_are_told_apart() -> None:
    one, same, other, silent = (asyncio.run(probed(Profile(tokenizer=ids))) for ids in (1, 1, 2, None))
    assert one.tokenizer_fingerprint == same.tokenizer_fingerprint != other.tokenizer_fingerprint
    assert silent.tokenizer_fingerprint is None


def test_a_server_that_describes_itself_says_which_endpoints_it_has() -> None:
    described = asyncio.run(probed(Profile(described=True)))
    assert described.endpoints == {Endpoint.CHAT, Endpoint.COMPLETION}
    assert asyncio.run(probed(Profile())).endpoints is None


@pytest.mark.parametrize("answer", [b"", b"[1]", b"{", b'{"choices": 7}', b'{"choices": [[]]}', b"[" * 5000])
def test_answers_that_are_no_answers_prove_nothing(answer: bytes) -> None:
    async def ask(*_: Any) -> tuple[int, bytes]:
        return 200, answer

    assert asyncio.run(Prober(ask, "m").probe()).features == set()


def test_a_server_that_fails_meanwhile_has_nothing() -> None:
    async def ask(*_: Any) -> tuple[int, bytes]:
        raise EngineError("gone")

    seen = asyncio.run(Prober(ask, "m").probe())
    assert (seen.features, seen.answered) == (set(), False)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0)


async def test_a_server_that_comes_up_late_is_probed_when_it_answers() -> None:
    stub = StubUpstream(Behaviour(profile=Profile(frozenset({Feature.SEED, Feature.N}))))
    url = await stub.start()
    port = int(url.rsplit(":", 1)[1])
    await stub.close()
    engine = OpenAIEngine(url, replica_id="r", clock=SystemClock(), probe=True)
    await engine.start()
    assert not engine.capabilities.features_known
    with pytest.raises(EngineError):
        await engine.observe()
    await stub.start(port=port)
    await engine.observe()
    await until(lambda: engine.capabilities.features_known)
    assert engine.capabilities.features == {Feature.SEED, Feature.N}
    await engine.close()
    await stub.close()


async def test_what_the_operator_vouches_for_counts_whatever_was_seen() -> None:
    stub = StubUpstream(Behaviour(profile=Profile(frozenset())))
    vouched = frozenset({Feature.SEED})
    url = await stub.start()
    engine = OpenAIEngine(url, replica_id="r", clock=SystemClock(), probe=True, features=vouched)
    await engine.start()
    assert engine.capabilities.features == {Feature.SEED}
    await engine.close()
    await stub.close()


def vllm_like(*tools: bytes) -> Callable[[str, str, Any], Any]:
    """A server that streams these events where tools are asked for, and refuses what is not streamed."""

    async def send(_: str, __: str, body: Any) -> tuple[int, bytes]:
        if body and body.get("stream"):
            return 200, b"".join(b"data: " + event + b"\n\n" for event in tools) + b"data: [DONE]\n\n"
        return (200, b'{"choices": [{"message": {}}]}') if body and "tools" in body else (404, b"{}")

    return send


START = b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"name":"now"}}]}}]}'
END = b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}}]}'


async def test_a_call_in_a_stream_is_seen_in_its_pieces() -> None:
    assert (await Prober(vllm_like(START, END), "m").probe()).features == TOOLS


@pytest.mark.parametrize(
    "events",
    [
        [b'{"choices":[{"index":0,"delta":{"content":"now()"}}]}'],
        [b'{"choices":[{"index":1,"delta":{"tool_calls":[{"function":{"name":"now"}}]}}]}'],
        [START, b'{"error":{"message":"no tools in streams","code":400}}'],
        [b"{", b"[]", b'{"choices":[[]]}', b'{"choices":[{"delta":{"tool_calls":[[],{"function":[]}]}}]}'],
    ],
)
async def test_a_stream_without_a_whole_call_shows_none(events: list[bytes]) -> None:
    assert (await Prober(vllm_like(*events), "m").probe()).features == set()


class Thinker:
    """A server whose model thinks until its budget ends, and answers what is asked after that."""

    def __init__(self, *budgets: str, refused: bool = False, passed_over: bool = False) -> None:
        self.budgets = budgets
        self.refused = refused
        self.passed_over = passed_over
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        status, answer = self.answer(path, body)
        return status, json.dumps(answer).encode()

    def answer(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        if path == "/openapi.json":
            return 200, described("reasoning_effort", *self.budgets)
        if path != "/v1/chat/completions":
            return 404, {}
        self.asked.append(body)
        given = [name for name in self.budgets if name in body]
        if given and self.refused:
            return 400, {"error": {"message": f"{given[0]} is set but reasoning is not configured."}}
        if self.passed_over:
            given = []
        message: dict[str, Any] = {"reasoning": "hm"}
        if given and "response_format" in body:
            message["content"] = '{"k": "zq"}'
        if given and body.get("tool_choice") == "required":
            message["tool_calls"] = [{"function": {"name": "now", "arguments": "{}"}}]
        return 200, {"choices": [{"message": message, "finish_reason": "length"}]}


def described(*fields: str) -> dict[str, Any]:
    """An OpenAPI document that lists these fields of both endpoints."""
    schema = {"schema": {"properties": {name: {} for name in fields}}}
    operation = {"post": {"requestBody": {"content": {"application/json": schema}}}}
    return {"paths": {endpoint.value: operation for endpoint in (Endpoint.CHAT, Endpoint.COMPLETION)}}


async def test_a_model_that_thinks_is_given_a_budget_so_that_its_answer_is_seen() -> None:
    server = Thinker("thinking_token_budget")
    seen = await Prober(server, "m").probe()
    assert seen.features == {
        Feature.TOOLS, Feature.TOOL_CHOICE, Feature.TOOL_TURNS, Feature.RESPONSE_FORMAT,
        Feature.REASONING_EFFORT, Feature.THINKING_TOKEN_BUDGET,
    }  # fmt: skip
    assert seen.requests <= MOST_REQUESTS
    assert seen.generated_tokens <= MOST_TOKENS


async def test_a_budget_that_is_refused_is_asked_for_once() -> None:
    server = Thinker("thinking_token_budget", refused=True)
    assert (await Prober(server, "m").probe()).features == {Feature.REASONING_EFFORT}
    assert sum("thinking_token_budget" in body for body in server.asked) == 1


async def test_a_budget_that_is_taken_and_changes_nothing_is_none() -> None:
    # So answers Aphrodite 0.24.1 on a processor.
    server = Thinker("thinking_token_budget", passed_over=True)
    assert (await Prober(server, "m").probe()).features == {Feature.REASONING_EFFORT}
    assert sum("thinking_token_budget" in body for body in server.asked) == 1


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"vllm_config": {"scheduler_config": {"policy": "priority"}}}, True),
        ({"vllm_config": {"scheduler_config": {"policy": "fcfs"}}}, False),
        ({"vllm_config": "VllmConfig(...)", "vllm_env": {}}, False),
        ({"enable_priority_scheduling": True}, True),
        ({"enable_priority_scheduling": False}, False),
        ({}, False),
    ],
)
async def test_a_priority_counts_where_the_servers_settings_schedule_by_it(settings, seen: bool) -> None:
    document = described("priority")
    document["paths"]["/get_server_info"] = {}

    async def send(_: str, path: str, body: Any) -> tuple[int, bytes]:
        if path == "/openapi.json":
            return 200, json.dumps(document).encode()
        if path.startswith("/get_server_info"):
            return 200, json.dumps(settings).encode()
        # It takes any priority, and any other field.
        return 200, b'{"choices": [{}]}'

    assert (Feature.PRIORITY in (await Prober(send, "m").probe()).features) is seen


# --- as vLLM 0.32.0 answers the demo model: its words, but those about suffixes are from its source ---


def vllm(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Its answers where they are not what the field alone suggests; usage as it counts it."""
    usage = {"prompt_tokens": 7, "completion_tokens": 1, "completion_tokens_details": None}
    if body.get("n", 1) > 1 and not body["temperature"]:
        return 400, {"error": {"message": "n must be 1 when using greedy sampling, got 2.", "code": 400}}
    if "suffix" in body:
        return 400, {
            "error": {"message": "suffix is only supported for models with FIM completion", "code": 400}
        }
    message: dict[str, Any] = {"role": "assistant", "content": "#", "reasoning": None}
    if "response_format" in body:
        message["content"] = '{"k"' + "\n" * 28
    choice = {"message": message, "finish_reason": "length", "logprobs": None}
    if body.get("logprobs"):
        choice["logprobs"] = {"content": [{"token": "#", "logprob": -1.0, "top_logprobs": [{"token": "#"}]}]}
    return 200, {"choices": [choice] * body.get("n", 1), "usage": usage}


LISTED = ("n", "logprobs", "response_format", "reasoning_effort", "seed", "suffix")


async def test_what_an_engine_lists_counts_only_where_it_also_does_it() -> None:
    async def ask(method: str, path: str, body: Any) -> tuple[int, bytes]:
        if path == "/openapi.json":
            return 200, json.dumps(described(*LISTED)).encode()
        status, answer = (404, {}) if path == "/tokenize" else vllm(body)
        return status, json.dumps(answer).encode()

    seen = await Prober(ask, "small").probe()
    assert {Feature.N, Feature.LOGPROBS, Feature.TOP_LOGPROBS, Feature.RESPONSE_FORMAT} <= seen.features
    assert Feature.SEED in seen.features
    lacking = {Feature.SUFFIX, Feature.REASONING_EFFORT, Feature.GREEDY_CHOICES, *TOOLS}
    assert not lacking & seen.features
    assert seen.requests <= MOST_REQUESTS


async def test_an_effort_of_reasoning_counts_where_a_model_was_seen_to_reason() -> None:
    features = frozenset({Feature.REASONING_EFFORT})
    assert (await probed(Profile(features, described=True))).features == features


# --- as real engines answered (tests/real/test_probing.py keeps it) ---------------------------------


@pytest.mark.parametrize("kept", sorted(ANSWERS.glob("*.json")), ids=lambda path: path.stem)
async def test_what_an_engine_answered_is_read_as_what_it_can_do(kept: Path) -> None:
    told = json.loads(kept.read_text(encoding="utf-8"))
    answers = {
        (method, path, json.dumps(body, sort_keys=True)): (status, raw.encode())
        for method, path, body, status, raw in told["exchanges"]
    }

    async def send(method: str, path: str, body: Any) -> tuple[int, bytes]:
        # A question that no engine was asked is to be asked of one first.
        return answers[method, path, json.dumps(body, sort_keys=True)]

    seen = await Prober(send, "small").probe()
    assert sorted(seen.features) == told["features"]
    assert seen.requests == len(told["exchanges"]) <= MOST_REQUESTS
