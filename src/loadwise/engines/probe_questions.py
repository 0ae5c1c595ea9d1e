"""What a server is asked to show what it can do: texts, a tool, a schema, and fields with their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from loadwise.decision.facts import Feature

FINGERPRINT_TEXT: Final = "def f(x):\n    return {'é': [x, 0x1F]}  # 東京 \U0001f600"
PROMPT: Final = "Say k."
PIXEL: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)
TOOL: Final = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
}
SCHEMA: Final = {
    "type": "object",
    "properties": {"k": {"enum": ["zq"]}},
    "required": ["k"],
    "additionalProperties": False,
}
OBEYED: Final = '{"k":"zq"}'
# So much of it no server says that was not told to.
LEAST_OBEYED: Final = 4
# Fields whose effect no short answer shows: a value of the right type, and one of a wrong type.
TYPED: Final[Mapping[str, tuple[Feature, Any, Any]]] = {
    "seed": (Feature.SEED, 1, "x"),
    "top_k": (Feature.TOP_K, 5, "x"),
    "min_p": (Feature.MIN_P, 0.1, "x"),
    "repetition_penalty": (Feature.REPETITION_PENALTY, 1.1, "x"),
    "frequency_penalty": (Feature.PENALTIES, 0.1, "x"),
    "ignore_eos": (Feature.IGNORE_EOS, True, "x"),
    "min_tokens": (Feature.MIN_TOKENS, 6, "x"),
    "stop_token_ids": (Feature.STOP_TOKEN_IDS, [1], "x"),
    "logit_bias": (Feature.LOGIT_BIAS, {"1": 0.5}, "x"),
    "reasoning_effort": (Feature.REASONING_EFFORT, "low", 7),
    "thinking_token_budget": (Feature.THINKING_TOKEN_BUDGET, 1, "x"),
    "thinking_budget": (Feature.THINKING_BUDGET, 1, "x"),
    "max_thinking_tokens": (Feature.MAX_THINKING_TOKENS, 1, "x"),
}
LENGTHS: Final = frozenset({Feature.MIN_TOKENS, Feature.IGNORE_EOS})
# So many tokens a request for exactly so many brings.
EXACT: Final = {"min_tokens": 6, "ignore_eos": True}
COMPLETION_FIELDS: Final[Mapping[str, tuple[Feature, Any]]] = {
    "best_of": (Feature.BEST_OF, 2),
    "suffix": (Feature.SUFFIX, "b"),
}
# Where servers tell how they were started; vLLM and Aphrodite by words unless JSON is asked for.
SETTINGS: Final = ("/server_info", "/get_server_info")
