"""Probing a real engine: within its budget, and every result holds when a client then asks for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from loadwise.clock import SystemClock
from loadwise.decision.facts import Feature
from loadwise.engines.openai_http import OpenAIEngine
from loadwise.engines.probing import MOST_REQUESTS, MOST_TOKENS

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]

CHAT = {"messages": [{"role": "user", "content": "def f("}], "max_tokens": 4}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
# A request for each feature, alone.
ASKING: dict[Feature, tuple[str, dict[str, Any]]] = {
    Feature.TOOLS: ("chat/completions", {"tools": [TOOL], "tool_choice": "auto"}),
    Feature.RESPONSE_FORMAT: ("chat/completions", {"response_format": {"type": "json_object"}}),
    Feature.LOGIT_BIAS: ("chat/completions", {"logit_bias": {"5": 1}}),
    Feature.LOGPROBS: ("chat/completions", {"logprobs": True}),
    Feature.TOP_LOGPROBS: ("chat/completions", {"logprobs": True, "top_logprobs": 2}),
    Feature.N: ("chat/completions", {"n": 2, "temperature": 1}),
    Feature.SEED: ("chat/completions", {"seed": 1}),
    Feature.TOP_K: ("chat/completions", {"top_k": 5}),
    Feature.MIN_P: ("chat/completions", {"min_p": 0.1}),
    Feature.STOP_TOKEN_IDS: ("chat/completions", {"stop_token_ids": [3]}),
    Feature.IGNORE_EOS: ("chat/completions", {"ignore_eos": True}),
    Feature.MIN_TOKENS: ("chat/completions", {"min_tokens": 2}),
    Feature.PENALTIES: ("chat/completions", {"frequency_penalty": 0.5}),
    Feature.REPETITION_PENALTY: ("chat/completions", {"repetition_penalty": 1.1}),
    Feature.ECHO: ("completions", {"prompt": "a", "echo": True}),
    Feature.TOKEN_IDS: ("completions", {"prompt": [5, 6]}),
    Feature.SUFFIX: ("completions", {"prompt": "a", "suffix": "b"}),
    Feature.BEST_OF: ("completions", {"prompt": "a", "best_of": 2, "temperature": 1}),
}


@pytest.fixture(scope="module", params=["vllm", "aphrodite"])
def server(request: pytest.FixtureRequest, start: Any) -> Iterator[Any]:
    with start(request.param, inside=False) as running:
        yield running


def generated(url: str) -> float:
    """Tokens that the engine says it generated."""
    page = httpx.get(url + "/metrics", timeout=30, trust_env=False).text
    found = re.findall(r"^\w+:generation_tokens_total(?:\{[^}]*\})? (\S+)$", page, re.MULTILINE)
    return sum(map(float, found))


async def test_probing_is_cheap_and_true(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenAIEngine(server.url, replica_id="r", clock=SystemClock(), probe=True)
    asked: list[str] = []
    original = OpenAIEngine._asked

    async def counting(self: OpenAIEngine, method: str, path: str, body: Any) -> tuple[int, bytes]:
        asked.append(path)
        return await original(self, method, path, body)

    monkeypatch.setattr(OpenAIEngine, "_asked", counting)
    before = generated(server.url)
    await engine.start()
    features = engine.capabilities.features
    await engine.close()
    assert 0 < len(asked) <= MOST_REQUESTS
    assert generated(server.url) - before <= MOST_TOKENS
    assert features >= {Feature.N, Feature.LOGPROBS, Feature.TOP_LOGPROBS, Feature.RESPONSE_FORMAT}
    with httpx.Client(base_url=server.url + "/v1/", timeout=120, trust_env=False) as client:
        wrong = {}
        for feature, (path, fields) in ASKING.items():
            body = {
                "model": engine.model,
                **(CHAT if path.startswith("chat") else {"max_tokens": 4}),
                **fields,
            }
            answer = client.post(path, json=body)
            # What is there is answered; what is not would be refused, or passed over without a word.
            taken = answer.status_code == 200
            if taken is not (feature in features) and not (taken and feature is Feature.BEST_OF):
                wrong[feature] = answer.status_code, answer.text[:200]
    assert wrong == {}
