"""What a server can do is seen within a small budget, and neither invented nor missed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
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
from loadwise.testing.profiles import Profile

# Their effect is not seen by a server that neither describes its fields nor refuses wrong types.
ONLY_LISTED = {Feature.BEST_OF, Feature.SUFFIX}
# Seen together only.
PAIRED = {Feature.MIN_TOKENS, Feature.IGNORE_EOS}


async def probed(profile: Profile) -> Probed:
    async def ask(method: str, path: str, body: Any) -> tuple[int, bytes]:
        return profile.answer(method, path, body)

    return await Prober(ask, "m").probe()


@example({Feature.BEST_OF, Feature.IGNORE_EOS, Feature.MEDIA, Feature.MIN_TOKENS}, True, True)
@example({Feature.BEST_OF, Feature.MEDIA, Feature.RESPONSE_FORMAT, Feature.LOGIT_BIAS}, True, True)
@given(st.sets(st.sampled_from(list(Feature))), st.booleans(), st.booleans())
def test_every_feature_is_told_and_none_invented(features, strict: bool, described: bool) -> None:
    profile = Profile(frozenset(features), strict=strict, described=described)
    seen = asyncio.run(probed(profile))
    assert seen.features <= features
    missed = features - seen.features
    if {Feature.TOP_LOGPROBS} == features & {Feature.LOGPROBS, Feature.TOP_LOGPROBS}:
        missed -= {Feature.TOP_LOGPROBS}
    allowed = set() if described else set(ONLY_LISTED)
    allowed |= set() if features >= PAIRED else PAIRED
    # A strict server refuses a request for what it has together with what it lacks.
    if strict and not features >= {Feature.N, Feature.LOGPROBS, Feature.TOP_LOGPROBS}:
        allowed |= {Feature.N, Feature.LOGPROBS, Feature.TOP_LOGPROBS}
    if strict and Feature.TOOLS in features:
        # The budget ends before the last question.
        allowed |= {Feature.MEDIA}
    assert missed <= allowed
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
    schema = {"schema": {"properties": {name: {} for name in LISTED}}}
    operation = {"post": {"requestBody": {"content": {"application/json": schema}}}}
    paths = {endpoint.value: operation for endpoint in (Endpoint.CHAT, Endpoint.COMPLETION)}

    async def ask(method: str, path: str, body: Any) -> tuple[int, bytes]:
        if path == "/openapi.json":
            return 200, json.dumps({"paths": paths}).encode()
        status, answer = (404, {}) if path == "/tokenize" else vllm(body)
        return status, json.dumps(answer).encode()

    seen = await Prober(ask, "small").probe()
    assert {Feature.N, Feature.LOGPROBS, Feature.TOP_LOGPROBS, Feature.RESPONSE_FORMAT} <= seen.features
    assert Feature.SEED in seen.features
    assert not {Feature.SUFFIX, Feature.REASONING_EFFORT, Feature.TOOLS} & seen.features
    assert seen.requests <= MOST_REQUESTS


async def test_an_effort_of_reasoning_counts_where_a_model_was_seen_to_reason() -> None:
    features = frozenset({Feature.REASONING_EFFORT})
    assert (await probed(Profile(features, described=True))).features == features
