"""Probing a real engine: within its budget, and every result holds when a client then asks for it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.real.adapters import write_adapter

from loadwise.clock import SystemClock
from loadwise.decision.facts import Endpoint, Feature
from loadwise.engines.openai_http import OpenAIEngine
from loadwise.engines.probing import MOST_REQUESTS, MOST_TOKENS

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]

# A folder in which what the engines answered is kept, for tests/engines/answers.
KEPT = os.environ.get("LOADWISE_KEEP_ANSWERS")
CHAT = {"messages": [{"role": "user", "content": "def f("}], "max_tokens": 4}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
# A request for each feature, alone.
ASKING: dict[Feature, tuple[str, dict[str, Any]]] = {
    Feature.TOOLS: ("chat/completions", {"tools": [TOOL], "tool_choice": "auto"}),
    Feature.TOOL_CHOICE: ("chat/completions", {"tools": [TOOL], "tool_choice": "required", "max_tokens": 64}),
    Feature.RESPONSE_FORMAT: ("chat/completions", {"response_format": {"type": "json_object"}}),
    Feature.LOGIT_BIAS: ("chat/completions", {"logit_bias": {"5": 1}}),
    Feature.LOGPROBS: ("chat/completions", {"logprobs": True}),
    Feature.TOP_LOGPROBS: ("chat/completions", {"logprobs": True, "top_logprobs": 2}),
    Feature.N: ("chat/completions", {"n": 2, "temperature": 1}),
    Feature.GREEDY_CHOICES: ("chat/completions", {"n": 2, "temperature": 0}),
    Feature.SEED: ("chat/completions", {"seed": 1}),
    Feature.TOP_K: ("chat/completions", {"top_k": 5}),
    Feature.MIN_P: ("chat/completions", {"min_p": 0.1}),
    Feature.STOP_TOKEN_IDS: ("chat/completions", {"stop_token_ids": [3]}),
    Feature.IGNORE_EOS: ("chat/completions", {"ignore_eos": True}),
    Feature.MIN_TOKENS: ("chat/completions", {"min_tokens": 2}),
    Feature.PENALTIES: ("chat/completions", {"frequency_penalty": 0.5}),
    Feature.REPETITION_PENALTY: ("chat/completions", {"repetition_penalty": 1.1}),
    Feature.THINKING_TOKEN_BUDGET: ("chat/completions", {"thinking_token_budget": 8}),
    Feature.PRIORITY: ("chat/completions", {"priority": 1}),
    Feature.ECHO: ("completions", {"prompt": "a", "echo": True}),
    Feature.TOKEN_IDS: ("completions", {"prompt": [5, 6]}),
    Feature.SUFFIX: ("completions", {"prompt": "a", "suffix": "b"}),
    Feature.BEST_OF: ("completions", {"prompt": "a", "best_of": 2, "temperature": 1}),
}
# What an engine that lacks it passes over without a word.
PASSED_OVER = {Feature.BEST_OF, Feature.PRIORITY}


@dataclass(frozen=True)
class Kind:
    """A way to start an engine, and what it has then beside what every such engine has."""

    engine: str
    more: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    has: frozenset[Feature] = frozenset()
    adapters: frozenset[str] = frozenset()
    # What it has and cannot show within what probing asks.
    unseen: frozenset[Feature] = frozenset()
    # Whether its model thinks before it answers.
    thinks: bool = False


_THINKING = " --reasoning-parser deepseek_r1 --enable-auto-tool-choice --tool-call-parser hermes"
_THINKER = frozenset(
    {Feature.THINKING_TOKEN_BUDGET, Feature.TOOLS, Feature.TOOL_CHOICE, Feature.STREAMED_TOOLS}
)
_AFTER_THOUGHTS = frozenset(
    {
        *(Feature.TOOLS, Feature.TOOL_CHOICE, Feature.RESPONSE_FORMAT, Feature.THINKING_TOKEN_BUDGET),
        *(Feature.MIN_TOKENS, Feature.IGNORE_EOS, Feature.TOKEN_IDS, Feature.BEST_OF),
    }
)
KINDS = {
    "vllm": Kind("vllm"),
    "aphrodite": Kind("aphrodite"),
    "vllm-with-everything": Kind(
        "vllm",
        " --enable-auto-tool-choice --tool-call-parser hermes --scheduling-policy priority"
        " --enable-lora --max-lora-rank 8 --lora-modules sql={adapter}",
        (("VLLM_SERVER_DEV_MODE", "1"),),
        # vLLM calls no tool, required or not, without a parser of calls.
        frozenset({Feature.TOOLS, Feature.TOOL_CHOICE, Feature.STREAMED_TOOLS, Feature.PRIORITY}),
        frozenset({"sql"}),
    ),
    "vllm-thinking": Kind("vllm", _THINKING, has=_THINKER, thinks=True),
    # It takes a budget of thinking and goes on thinking, so that what it would say after is not seen.
    "aphrodite-thinking": Kind("aphrodite", _THINKING, unseen=_AFTER_THOUGHTS, thinks=True),
}


@pytest.fixture(scope="module")
def adapter(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("lora") / "sql", model_folder)


@pytest.fixture(scope="module")
def thinker(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as one that thinks: its template opens a thought, which it closes only when made to."""
    folder = tmp_path_factory.mktemp("thinker") / "model"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns("openvino*"))
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    # The rarest two words of its vocabulary become the marks.
    words = tokens["model"]["vocab"]
    marks = {"<think>": len(words) - 2, "</think>": len(words) - 1}
    tokens["model"]["vocab"] = {word: place for word, place in words.items() if place < len(words) - 2}
    tokens["model"]["merges"] = tokens["model"]["merges"][:-2]
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokens["added_tokens"] += [{"id": place, "content": mark, **plain} for mark, place in marks.items()]
    settings["chat_template"] += "{% if add_generation_prompt %}<think>\n{% endif %}"
    (folder / "tokenizer.json").write_text(json.dumps(tokens), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=KINDS)
def server(
    request: pytest.FixtureRequest, start: Any, adapter: Path, thinker: Path
) -> Iterator[tuple[Kind, Any]]:
    kind = KINDS[request.param]
    more = kind.more.format(adapter=adapter)
    environment = {**dict(kind.environment), **({"MODEL": str(thinker)} if kind.thinks else {})}
    with start(kind.engine, inside=False, more=more, **environment) as running:
        yield kind, running


def generated(url: str) -> float:
    """Tokens that the engine says it generated."""
    page = httpx.get(url + "/metrics", timeout=30, trust_env=False).text
    found = re.findall(r"^\w+:generation_tokens_total(?:\{[^}]*\})? (\S+)$", page, re.MULTILINE)
    return sum(map(float, found))


def described(raw: bytes) -> Any:
    """Of an OpenAPI document what probing reads: the paths, and the fields of completions."""
    document = json.loads(raw)
    paths: dict[str, Any] = {path: {} for path in document["paths"]}
    for endpoint in (Endpoint.CHAT, Endpoint.COMPLETION):
        content = document["paths"][endpoint.value]["post"]["requestBody"]["content"]
        name = content["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
        fields = document["components"]["schemas"][name]["properties"]
        schema = {"schema": {"properties": {field: {} for field in fields}}}
        paths[endpoint.value] = {"post": {"requestBody": {"content": {"application/json": schema}}}}
    return {"paths": paths}


def keep(name: str, exchanges: list[Any], features: frozenset[Feature]) -> None:
    """What the engine answered, as the fast tests read it."""
    if KEPT is not None:
        told = {"features": sorted(features), "exchanges": exchanges}
        Path(KEPT, f"{name}.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


async def test_probing_is_cheap_and_true(
    server: tuple[Kind, Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, running = server
    exchanges: list[Any] = []
    original = OpenAIEngine._asked

    async def noting(self: OpenAIEngine, method: str, path: str, body: Any) -> tuple[int, bytes]:
        status, raw = await original(self, method, path, body)
        said = json.dumps(described(raw)) if path == "/openapi.json" else raw.decode()
        if path.startswith("/server_info"):
            told = json.loads(raw)
            scheduler = {"scheduler_config": {"policy": told["vllm_config"]["scheduler_config"]["policy"]}}
            said = json.dumps({"vllm_config": scheduler})
        exchanges.append([method, path, body, status, said])
        return status, raw

    monkeypatch.setattr(OpenAIEngine, "_asked", noting)
    engine = OpenAIEngine(running.url, replica_id="r", clock=SystemClock(), probe=True)
    before = generated(running.url)
    await engine.start()
    features, adapters = engine.capabilities.features, engine.capabilities.adapters
    await engine.close()
    keep(request.node.callspec.params["server"], exchanges, features)
    assert 0 < len(exchanges) <= MOST_REQUESTS
    assert generated(running.url) - before <= MOST_TOKENS
    certain = {Feature.N, Feature.LOGPROBS, Feature.TOP_LOGPROBS, Feature.RESPONSE_FORMAT}
    assert features >= {*certain, *kind.has} - kind.unseen
    assert features.isdisjoint(kind.unseen)
    assert adapters == kind.adapters
    assert wrong(running.url, engine.model, features).keys() <= kind.unseen


def wrong(url: str, model: str | None, features: frozenset[Feature]) -> dict[Feature, tuple[int, str]]:
    """What is there and was refused, or is not and was neither refused nor passed over without a word."""
    found = {}
    with httpx.Client(base_url=url + "/v1/", timeout=120, trust_env=False) as client:
        for feature, (path, fields) in ASKING.items():
            plain = CHAT if path.startswith("chat") else {"max_tokens": 4}
            answer = client.post(path, json={"model": model, **plain, **fields})
            taken = answer.status_code == 200
            if taken is not (feature in features) and not (taken and feature in PASSED_OVER):
                found[feature] = answer.status_code, answer.text[:200]
    return found


async def test_an_adapter_is_asked_for_by_its_name_and_a_model_that_is_gone_is_the_replicas_fault(
    server: tuple[Kind, Any], gateway: Any, tmp_path: Path
) -> None:
    kind, running = server
    if not kind.adapters:
        pytest.skip("started without adapters")
    upstreams = {
        "adapted": {"url": running.url, "model": "sql", "probe": False},
        "gone": {"url": running.url, "model": "law", "probe": False},
    }
    (config := tmp_path / "loadwise.yaml").write_text(json.dumps({"upstreams": upstreams}))
    with gateway("--config", str(config)) as front, httpx.Client(timeout=120, trust_env=False) as client:
        answers = {
            name: client.post(f"{front.url}/v1/chat/completions", json={"model": name, **CHAT})
            for name in upstreams
        }
    assert answers["adapted"].status_code == 200
    assert (answers["gone"].status_code, answers["gone"].json()["error"]["code"]) == (502, "engine_failed")
