"""OpenAI's shapes as the fakes send them, written independently of the code under test."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from loadwise.decision.facts import Endpoint

DONE = b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts as a `usage` object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def error(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> bytes:
    """An error body with all four keys."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


def whole(
    endpoint: Endpoint, request_id: str, model: str, text: str, reason: str, tokens: dict[str, int]
) -> bytes:
    """A finished answer."""
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
    if endpoint is Endpoint.CHAT:
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    kind = "chat.completion" if endpoint is Endpoint.CHAT else "text_completion"
    body = {"id": request_id, "object": kind, "created": 0, "model": model, "choices": [choice]}
    return json.dumps({**body, "usage": tokens}, ensure_ascii=False).encode()


@lru_cache(maxsize=4096)
def chunk(
    endpoint: Endpoint, request_id: str, model: str, text: str, reason: str | None, first: bool = False
) -> bytes:
    """One chunk of a streamed answer."""
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
    if endpoint is Endpoint.CHAT:
        choice["delta"] = {"role": "assistant", "content": text} if first else {"content": text}
    else:
        choice["text"] = text
    return event(_chunk_body(endpoint, request_id, model) | {"choices": [choice]})


def usage_chunk(endpoint: Endpoint, request_id: str, model: str, tokens: dict[str, int]) -> bytes:
    """The extra chunk of `include_usage`."""
    return event(_chunk_body(endpoint, request_id, model) | {"choices": [], "usage": tokens})


def _chunk_body(endpoint: Endpoint, request_id: str, model: str) -> dict[str, Any]:
    kind = "chat.completion.chunk" if endpoint is Endpoint.CHAT else "text_completion"
    return {"id": request_id, "object": kind, "created": 0, "model": model}
