"""The wire: JSON bodies and server-sent events in OpenAI's shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from loadwise.decision.facts import Endpoint
from loadwise.engines.rendering.choices import Piece, TokenLogprob
from loadwise.engines.tokenizer import Tokenizer
from loadwise.errors import RequestError
from loadwise.ports import JsonObject

DONE = b"data: [DONE]\n\n"
STREAM_HEADERS = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))
_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request over all its prompts and sequences."""

    prompt_tokens: int
    completion_tokens: int
    # None: the engine does not say.
    cached_tokens: int | None = None

    def json(self) -> JsonObject:
        """In OpenAI's shape, details included."""
        cached = (
            None if self.cached_tokens is None else {"cached_tokens": self.cached_tokens, "audio_tokens": 0}
        )
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": cached,
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + _encode(value) + b"\n\n"


def failure(error: RequestError) -> bytes:
    """How a stream that had begun says that it failed; nothing follows it."""
    return event(error.body()) + DONE


class Frames:
    """Everything one answer sends, with what its frames share encoded once."""

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        request_id: str,
        model: str,
        created_s: int,
        fingerprint: str,
        tokenizer: Tokenizer,
    ) -> None:
        self.chat = endpoint is Endpoint.CHAT
        self._tokenizer = tokenizer
        self._prefix = "chatcmpl-" if self.chat else "cmpl-"
        self._shared = {
            "id": self._prefix + request_id,
            "created": created_s,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        head = _encode({**self._shared, "object": kind})[:-1]
        self._head = b"data: " + head + b',"choices":['
        self._usage_null = b""

    def show_usage(self) -> None:
        """Chunks carry `usage: null` until the one that has it."""
        self._usage_null = b',"usage":null'

    def role(self, index: int) -> bytes:
        """The first chunk of a chat choice; completions have none."""
        if not self.chat:
            return b""
        choice = {"index": index, "delta": {"role": "assistant", "content": "", "refusal": None}}
        return self._frame(_encode({**choice, "logprobs": None, "finish_reason": None}), None)

    def piece(self, index: int, piece: Piece, usage: Usage | None = None) -> bytes:
        """A chunk with new text; also the last one, with its finish reason."""
        text = _encode(piece.text)
        body = b'"delta":{"content":' + text + b"}" if self.chat else b'"text":' + text
        logprobs = _encode(self.logprobs(piece.logprobs)) if piece.logprobs else b"null"
        reason = b'"%s"' % piece.finish_reason.encode() if piece.finish_reason else b"null"
        choice = b'{"index":%d,%s,"logprobs":%s,"finish_reason":%s}' % (index, body, logprobs, reason)
        return self._frame(choice, usage)

    def usage(self, usage: Usage) -> bytes:
        """The extra chunk that clients get who asked for usage."""
        return self._frame(b"", usage)

    def _frame(self, choice: bytes, usage: Usage | None) -> bytes:
        tail = self._usage_null if usage is None else b',"usage":' + _encode(usage.json())
        return b"%s%s]%s}\n\n" % (self._head, choice, tail)

    def whole(self, choices: Sequence[JsonObject], usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        kind = "chat.completion" if self.chat else "text_completion"
        return _encode({**self._shared, "object": kind, "choices": choices, "usage": usage.json()})

    def choice(self, index: int, piece: Piece, wants_logprobs: bool) -> JsonObject:
        """A whole choice in the endpoint's shape."""
        shared = {
            "index": index,
            "logprobs": self.logprobs(piece.logprobs) if wants_logprobs else None,
            "finish_reason": piece.finish_reason,
        }
        if self.chat:
            return {**shared, "message": {"role": "assistant", "content": piece.text, "refusal": None}}
        return {**shared, "text": piece.text}

    def logprobs(self, entries: Sequence[TokenLogprob]) -> JsonObject:
        """Logprobs in the endpoint's shape."""
        return self._chat_logprobs(entries) if self.chat else self._completion_logprobs(entries)

    def _chat_logprobs(self, entries: Sequence[TokenLogprob]) -> JsonObject:
        content = [
            {
                **self._token(entry.token_id, entry.logprob),
                "top_logprobs": [self._token(token_id, logprob) for token_id, logprob in entry.top],
            }
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def _completion_logprobs(self, entries: Sequence[TokenLogprob]) -> JsonObject:
        return {
            "tokens": [self._text(entry.token_id) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [
                {self._text(token_id): logprob for token_id, logprob in entry.top} or None
                for entry in entries
            ],
            "text_offset": [entry.offset for entry in entries],
        }

    def _token(self, token_id: int, logprob: float) -> JsonObject:
        raw = self._tokenizer.token_bytes(token_id)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}

    def _text(self, token_id: int) -> str:
        """A token as text; half a character is written as its bytes, so that names stay distinct."""
        raw = self._tokenizer.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
