"""Servers of different abilities: each does what it can, and with the rest what such servers do.

Written independently of the code under test: `ASKS` says how a body asks for a feature, and `Profile`
keeps every feature that a request asked for and the server did not have.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from loadwise.decision.facts import Endpoint, Feature
from loadwise.testing import shapes

Body = Mapping[str, Any]
# How a body asks for each feature.
ASKS: Final[Mapping[Feature, Callable[[Body], bool]]] = {
    Feature.TOOLS: lambda body: bool(body.get("tools")) and body.get("tool_choice", "auto") == "auto",
    Feature.TOOL_CHOICE: lambda body: bool(body.get("tools")) and body.get("tool_choice", "auto") != "auto",
    Feature.STREAMED_TOOLS: lambda body: (
        bool(body.get("tools")) and bool(body.get("stream")) and body.get("tool_choice") != "none"
    ),
    Feature.TOOL_TURNS: lambda body: any(m["role"] == "tool" for m in body.get("messages", ())),
    Feature.RESPONSE_FORMAT: lambda body: "response_format" in body,
    Feature.MEDIA: lambda body: any(isinstance(m["content"], list) for m in body.get("messages", ())),
    Feature.LOGIT_BIAS: lambda body: "logit_bias" in body,
    Feature.REASONING_EFFORT: lambda body: "reasoning_effort" in body,
    Feature.THINKING_TOKEN_BUDGET: lambda body: "thinking_token_budget" in body,
    Feature.THINKING_BUDGET: lambda body: "thinking_budget" in body,
    Feature.MAX_THINKING_TOKENS: lambda body: "max_thinking_tokens" in body,
    Feature.LOGPROBS: lambda body: body.get("logprobs") not in (None, False),
    Feature.TOP_LOGPROBS: lambda body: bool(body.get("top_logprobs")),
    Feature.N: lambda body: "n" in body,
    Feature.GREEDY_CHOICES: lambda body: body.get("n", 1) > 1 and body.get("temperature", 1) == 0,
    Feature.BEST_OF: lambda body: "best_of" in body,
    Feature.ECHO: lambda body: bool(body.get("echo")),
    Feature.SUFFIX: lambda body: "suffix" in body,
    Feature.SEED: lambda body: "seed" in body,
    Feature.TOP_K: lambda body: "top_k" in body,
    Feature.MIN_P: lambda body: "min_p" in body,
    Feature.STOP_TOKEN_IDS: lambda body: "stop_token_ids" in body,
    Feature.IGNORE_EOS: lambda body: "ignore_eos" in body,
    Feature.MIN_TOKENS: lambda body: "min_tokens" in body,
    Feature.TOKEN_IDS: lambda body: isinstance(body.get("prompt"), list),
    Feature.PENALTIES: lambda body: "frequency_penalty" in body or "presence_penalty" in body,
    Feature.REPETITION_PENALTY: lambda body: "repetition_penalty" in body,
    Feature.PRIORITY: lambda body: body.get("priority", 0) != 0,
}
THINKING: Final = (
    Feature.REASONING_EFFORT,
    Feature.THINKING_TOKEN_BUDGET,
    Feature.THINKING_BUDGET,
    Feature.MAX_THINKING_TOKENS,
)
# What engines that lack it refuse, whatever else they ignore.
REFUSED: Final = frozenset({Feature.GREEDY_CHOICES, Feature.TOOLS})
_FIELDS: Final = {
    Feature.PENALTIES: "frequency_penalty",
    Feature.TOKEN_IDS: "prompt",
    Feature.MEDIA: "messages",
}
_NUMBERS: Final = (
    "seed", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "min_tokens",
    "thinking_token_budget", "thinking_budget", "max_thinking_tokens",
)  # fmt: skip


@dataclass(slots=True)
class Profile:
    """A server that has `features`; what it lacks it refuses (`strict`) or ignores without a word."""

    features: frozenset[Feature] = frozenset(Feature)
    strict: bool = False
    # Answers /openapi.json with the fields that it takes.
    described: bool = False
    # Its tokenizer: the ids that a text becomes; None: it does not say.
    tokenizer: int | None = None
    # What was asked of it in vain, and how often it refused.
    ignored: Counter[Feature] = field(default_factory=Counter)
    refused: int = 0

    def answer(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        """The server's answer to one request."""
        if method == "GET":
            return self._told(path.partition("?")[0])
        if path == "/tokenize" and self.tokenizer is not None:
            return 200, json.dumps({"tokens": [self.tokenizer + ord(c) for c in body["prompt"]]}).encode()
        if path not in {Endpoint.CHAT.value, Endpoint.COMPLETION.value}:
            return 404, b"{}"
        asked = {feature for feature, asks in ASKS.items() if asks(body)}
        lacked = asked if self.strict else asked & REFUSED
        wrong = sorted({*self._mistyped(body, asked), *self._lacking(lacked)})
        if wrong:
            self.refused += 1
            return 400, shapes.error(f"invalid: {', '.join(wrong)}", kind="invalid_request_error")
        self.ignored.update(asked - self.features)
        generated = self._generated(Endpoint(path), body)
        return 200, _streamed(generated) if body.get("stream") else json.dumps(generated).encode()

    def _told(self, path: str) -> tuple[int, bytes]:
        """What it says of itself, where it does."""
        if path == "/openapi.json" and self.described:
            return 200, self._description()
        if path == "/server_info" and self.described:
            policy = "priority" if Feature.PRIORITY in self.features else "fcfs"
            return 200, json.dumps({"vllm_config": {"scheduler_config": {"policy": policy}}}).encode()
        return 404, b"{}"

    def _lacking(self, asked: set[Feature]) -> list[str]:
        return [feature.value for feature in asked - self.features]

    def _mistyped(self, body: Body, asked: set[Feature]) -> list[str]:
        """Fields that it knows, with values of a wrong type."""
        wrong = [name for name in _NUMBERS if isinstance(body.get(name), str)]
        wrong += [name for name in ("ignore_eos", "stop_token_ids", "logit_bias") if body.get(name) == "x"]
        wrong += ["reasoning_effort"] if isinstance(body.get("reasoning_effort"), int) else []
        known = {_FIELDS.get(feature, feature.value) for feature in asked & self.features}
        return [name for name in wrong if name in known]

    def _generated(self, endpoint: Endpoint, body: Body) -> dict[str, Any]:
        has = self.features.__contains__
        exact = has(Feature.MIN_TOKENS) and "min_tokens" in body
        count = int(body["min_tokens"]) if exact else min(2, int(body.get("max_tokens", 2)))
        prompt = body.get("prompt")
        tokens = len(prompt) if isinstance(prompt, list) and has(Feature.TOKEN_IDS) else 9
        tokens += 16 if has(Feature.MEDIA) and ASKS[Feature.MEDIA](body) else 0
        choices = int(body.get("n", 1)) if has(Feature.N) else 1
        return {
            "id": "p",
            "choices": [{"index": at, **self._choice(endpoint, body)} for at in range(choices)],
            "usage": shapes.usage(tokens, count * choices),
        }

    def _choice(self, endpoint: Endpoint, body: Body) -> dict[str, Any]:
        has = self.features.__contains__
        if endpoint is Endpoint.COMPLETION:
            echoed = has(Feature.ECHO) and body.get("echo") and isinstance(body["prompt"], str)
            return {"text": (body["prompt"] if echoed else "") + " word", "finish_reason": "stop"}
        message: dict[str, Any] = {"role": "assistant", "content": "word"}
        streams = has(Feature.STREAMED_TOOLS) or not body.get("stream")
        if has(Feature.TOOL_CHOICE) and streams and body.get("tool_choice") == "required":
            message["tool_calls"] = [{"type": "function", "function": {"name": "now", "arguments": "{}"}}]
        if has(Feature.RESPONSE_FORMAT) and "response_format" in body:
            message["content"] = '{"k": "zq"}'
        if any(map(has, THINKING)):
            message["reasoning_content"] = "hm"
        choice: dict[str, Any] = {"message": message, "finish_reason": "stop"}
        if has(Feature.LOGPROBS) and body.get("logprobs"):
            top = [{"token": "w", "logprob": -0.1}] if has(Feature.TOP_LOGPROBS) else []
            choice["logprobs"] = {"content": [{"token": "w", "logprob": -0.1, "top_logprobs": top}]}
        return choice

    def _description(self) -> bytes:
        names = {_FIELDS.get(feature, feature.value) for feature in self.features} | {"model"}
        schema: dict[str, Any] = {"properties": {name: {} for name in sorted(names)}}
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Body"}}}
        operation = {"post": {"requestBody": {"content": content}}}
        paths = {endpoint.value: operation for endpoint in (Endpoint.CHAT, Endpoint.COMPLETION)}
        paths["/server_info"] = {}
        return json.dumps({"paths": paths, "components": {"schemas": {"Body": schema}}}).encode()


def _streamed(answer: Mapping[str, Any]) -> bytes:
    """The answer in one chunk and its usage."""
    choices = [{"index": each["index"], "delta": each["message"]} for each in answer["choices"]]
    ends = [{"index": each["index"], "delta": {}, "finish_reason": "stop"} for each in answer["choices"]]
    chunks = ({"choices": choices}, {"choices": ends}, {"choices": [], "usage": answer["usage"]})
    return b"".join(map(shapes.event, chunks)) + shapes.DONE
