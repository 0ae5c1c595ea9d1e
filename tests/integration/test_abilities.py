"""Requests reach only members that can serve them, whatever servers of different abilities stand behind."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest

from loadwise.decision.beliefs import initial_beliefs
from loadwise.decision.candidates import Refusal, candidates
from loadwise.decision.ensemble import select
from loadwise.decision.facts import (
    COMPLETIONS,
    Capabilities,
    Endpoint,
    Feature,
    Member,
    Policy,
    Replica,
    RequestFacts,
    Route,
)
from loadwise.decision.lineup import lineup_of
from loadwise.decision.strategy import StrategyState, choose
from loadwise.engines.probing import Prober
from loadwise.gateway.fields import decode, explicit
from loadwise.gateway.reading import features
from loadwise.optimizer.abilities import common
from loadwise.testing.profiles import Profile

REQUESTS = 10_000
ALL = frozenset(Feature)
PROFILES = {
    "complete": Profile(ALL, described=True, tokenizer=1),
    # As vLLM without its flags: it calls tools when told to, and samples what it gives several times.
    "plain-engine": Profile(
        ALL - {Feature.MEDIA, Feature.TOOLS, Feature.GREEDY_CHOICES, Feature.PRIORITY},
        described=True,
        tokenizer=1,
    ),
    "strict": Profile(
        frozenset({Feature.SEED, Feature.N, Feature.PENALTIES, Feature.STOP_TOKEN_IDS}),
        strict=True,
        tokenizer=2,
    ),
    "ignoring": Profile(
        frozenset(
            {
                Feature.LOGPROBS,
                Feature.TOP_K,
                Feature.TOKEN_IDS,
                Feature.TOOLS,
                Feature.TOOL_CHOICE,
                Feature.TOOL_TURNS,
                Feature.N,
                Feature.THINKING_BUDGET,
            }
        )
    ),
    "plain": Profile(frozenset()),
}
CHAT: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}},
    "logit_bias": {"5": 1},
    "reasoning_effort": "low",
    "logprobs": True,
    "n": 2,
    "seed": 1,
    "top_k": 5,
    "min_p": 0.1,
    "stop_token_ids": [3],
    "ignore_eos": True,
    "min_tokens": 2,
    "presence_penalty": 0.5,
    "repetition_penalty": 1.1,
    "priority": 5,
    "thinking_token_budget": 0,
    "thinking_budget": 8,
    "max_thinking_tokens": 8,
}
TOOL_CHOICES = [None, "auto", "required", "none", {"type": "function", "function": {"name": "f"}}]
COMPLETION: dict[str, Any] = {**CHAT, "best_of": 2, "echo": True, "suffix": "z", "logprobs": 2}
for name in ("tools", "reasoning_effort"):
    del COMPLETION[name]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "3"},
]
IMAGE = [{"type": "image_url", "image_url": {"url": "data:,"}}]


def body(dice: random.Random) -> tuple[Endpoint, dict[str, Any]]:
    """A request for some features, in a client's words."""
    endpoint = dice.choice([Endpoint.CHAT, Endpoint.COMPLETION])
    table = CHAT if endpoint is Endpoint.CHAT else COMPLETION
    asked = {key: table[key] for key in dice.sample(sorted(table), dice.choice([0, 1, 1, 2, 3]))}
    if dice.random() < 0.3:
        asked["temperature"] = dice.choice([0, 0.7])
    model = dice.choice(["auto", "auto", "auto", *PROFILES])
    if endpoint is Endpoint.COMPLETION:
        return endpoint, {"model": model, "prompt": dice.choice(["text", [1, 2]]), **asked}
    if dice.random() < 0.3:
        asked["stream"] = True
    if "tools" in asked and (choice := dice.choice(TOOL_CHOICES)) is not None:
        asked["tool_choice"] = choice
    if "logprobs" in asked and dice.random() < 0.5:
        asked["top_logprobs"] = 2
    content = IMAGE if dice.random() < 0.1 else "text"
    turns = [{"role": "user", "content": content}, *(RESULT if dice.random() < 0.1 else ())]
    return endpoint, {"model": model, "messages": turns, **asked}


async def capabilities(profile: Profile) -> Capabilities:
    async def ask(method: str, path: str, asked: Any) -> tuple[int, bytes]:
        return profile.answer(method, path, asked)

    seen = await Prober(ask, "m").probe()
    profile.refused = 0
    profile.ignored.clear()
    return Capabilities(
        features=frozenset(seen.features),
        context_tokens=1024,
        tokenizer_fingerprint=seen.tokenizer_fingerprint,
        endpoints=seen.endpoints,
    )


@pytest.fixture(scope="module")
def able() -> dict[str, Capabilities]:
    return {name: asyncio.run(capabilities(profile)) for name, profile in PROFILES.items()}


def test_no_engine_refuses_and_no_feature_is_silently_ignored(able: dict[str, Capabilities]) -> None:
    members = tuple(
        Member(member_id=name, replicas=(Replica(replica_id=name, pool_id=name),), capabilities=can)
        for name, can in able.items()
    )
    route = Route(name="auto", members=members, default_member="complete")
    known = initial_beliefs(route, 0.0)
    quiet = choose(Policy(), StrategyState(), 0.1, 0.0)[1]
    dice = random.Random(4)
    served = 0
    for number in range(REQUESTS):
        endpoint, asked = body(dice)
        fields = decode(endpoint, msgspec.json.encode(asked))
        needs = features(fields, explicit(fields))
        facts = RequestFacts(request_id=str(number), endpoint=endpoint, model=asked["model"], features=needs)
        chosen = select(Policy(), route, facts, known, {}, quiet, dice.random(), 1.0)
        if isinstance(chosen, Refusal):
            names = able if asked["model"] == "auto" else [asked["model"]]
            assert chosen.status == 400
            assert not any(needs <= able[name].features for name in names)
            continue
        served += 1
        status, _ = PROFILES[chosen.member_id].answer("POST", endpoint.value, asked)
        assert status == 200
    assert [(profile.refused, profile.ignored.total()) for profile in PROFILES.values()] == [(0, 0)] * 5
    assert REQUESTS / 10 < served < REQUESTS * 9 / 10


def test_every_profile_is_seen_as_it_is_but_for_what_it_hides(able: dict[str, Capabilities]) -> None:
    seen = {name: can.features for name, can in able.items()}
    # A strict server refuses two choices together with the log probabilities that it lacks.
    hidden = {"strict": {Feature.N}}
    assert seen == {name: PROFILES[name].features - hidden.get(name, set()) for name in PROFILES}


@pytest.mark.parametrize("feature", [Feature.TOKEN_IDS, Feature.LOGIT_BIAS, Feature.STOP_TOKEN_IDS])
def test_token_ids_never_cross_tokenizers(feature: Feature) -> None:
    def member(name: str, fingerprint: str | None) -> Member:
        can = Capabilities(features=ALL, tokenizer_fingerprint=fingerprint)
        return Member(member_id=name, replicas=(Replica(replica_id=name, pool_id=name),), capabilities=can)

    same, default, other, unknown = (
        member("same", "a"), member("default", "a"), member("other", "b"), member("unknown", None)
    )  # fmt: skip
    asked = RequestFacts(request_id="r", features=frozenset({feature}))

    def left(*members: Member, of: str = "default") -> list[str]:
        found = candidates(lineup_of(Route(name="auto", members=members, default_member=of)), asked)
        assert not isinstance(found, Refusal)
        return [each.member_id for each in found]

    assert left(same, default, other, unknown) == ["same", "default"]
    assert left(other, unknown, of="unknown") == ["unknown"]


def test_a_member_can_do_what_all_its_replicas_can() -> None:
    one = Capabilities(
        features=frozenset({Feature.SEED, Feature.N}), context_tokens=2048, tokenizer_fingerprint="a",
        endpoints=None,
    )  # fmt: skip
    two = Capabilities(features=frozenset({Feature.SEED}), context_tokens=1024, tokenizer_fingerprint="b")
    down = Capabilities(features_known=False)
    both = common([one, two, down])
    assert both.features == {Feature.SEED}
    assert (both.context_tokens, both.tokenizer_fingerprint) == (1024, None)
    assert both.endpoints == COMPLETIONS
    assert common([down]) is down
