"""The bodies of OpenAI-shaped requests: every field that is known, with its type and range.

A field is honoured, or refused with a 400 that names it (`REFUSED`), or accepted without effect
because its absence changes no answer (`WITHOUT_EFFECT`). Names in none of them are refused too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from loadwise.errors import RequestError

# Accepted and without effect: hints to billing, storage, routing or caching that no answer shows.
WITHOUT_EFFECT: Mapping[str, str] = {
    "user": "who asks, for the operator's statistics",
    "metadata": "labels of stored answers; nothing is stored",
    "store": "answers are never stored",
    "service_tier": "there is one tier",
    "safety_identifier": "who asks, for abuse detection",
    "prompt_cache_key": "prefixes are found by their content",
    "prompt_cache_options": "prefixes are found by their content",
    "prompt_cache_retention": "prefixes are found by their content",
    "verbosity": "a hint that this model was not trained for",
    "prediction": "a hint that only speeds up",
    "request_id": "the x-request-id header names a request",
    "session_id": "used by the gateway to keep a conversation's member",
    "cache_salt": "the prefix cache belongs to one server",
    "stream_interval": "every token is sent as it comes",
    "parallel_tool_calls": "concerns tools only",
    "skip_special_tokens": "special tokens are never part of the text",
    "spaces_between_special_tokens": "special tokens are never part of the text",
    "repetition_detection": "a hint that only ends runaway answers",
}

# Refused by name unless null, empty or the value that asks for nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "reasoning_effort": ("none",),
    "thinking_token_budget": (),
    "thinking_budget": (),
    "max_thinking_tokens": (),
    # Requests are served in order.
    "priority": (0,),
    "modalities": (["text"], []),
    "audio": (),
    "web_search_options": (),
    "moderation": (),
    "suffix": ("",),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "bad_words": ([],),
    "prompt_logprobs": (),
    "prompt_embeds": (),
    "documents": ([],),
    "logits_processors": ([],),
    "include_stop_str_in_output": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "chat_template": (),
    "continue_final_message": (False,),
    "best_of": (1,),
    "echo": (False,),
}

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Stop = Annotated[str, Meta(min_length=1, max_length=1024)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1)]


class StreamOptions(Struct):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Body(Struct, kw_only=True):
    """What both endpoints share. Null means absent everywhere."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=4)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    add_special_tokens: bool | None = None


class ChatBody(Body, kw_only=True):
    """A body of /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None


class CompletionBody(Body, kw_only=True):
    """A body of /v1/completions; `prompt` is a text, texts, token ids, or lists of token ids."""

    prompt: Any
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    # Not OpenAI's for this endpoint; load tools send both.
    max_completion_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None


T = TypeVar("T", bound=Body)
_ANY = msgspec.json.Decoder(dict[str, Any])
_PATH = re.compile(r" - at `\$\.?([A-Za-z_]\w*)?.*`$")


def decode_chat(body: bytes) -> ChatBody:
    """A validated chat body; `RequestError` 400 names the first field that is wrong or refused."""
    return _decode(body, ChatBody)


def decode_completion(body: bytes) -> CompletionBody:
    """A validated completion body; `RequestError` 400 names the first field that is wrong or refused."""
    return _decode(body, CompletionBody)


def _decode(body: bytes, kind: type[T]) -> T:
    fields = _fields(body)
    _refuse_unsupported(fields, kind)
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise _named(error) from None


def _fields(body: bytes) -> dict[str, Any]:
    try:
        return _ANY.decode(body)
    except RecursionError:
        raise RequestError("The request body is nested too deeply.") from None
    except msgspec.ValidationError:
        raise RequestError("The request body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"The request body is no valid JSON: {error}") from None


def _refuse_unsupported(fields: dict[str, Any], kind: type[Body]) -> None:
    """Raises for fields that would change the answer and are not honoured, and for unknown ones."""
    known = kind.__struct_fields__
    for name, value in fields.items():
        if name in known or name in WITHOUT_EFFECT or value is None:
            continue
        if name not in REFUSED:
            raise RequestError(
                f"Unrecognized request argument supplied: {name:.64}.",
                param=name[:64],
                code="unknown_parameter",
            )
        if not any(value == harmless and type(value) is type(harmless) for harmless in REFUSED[name]):
            raise unsupported(name)


def unsupported(field: str) -> RequestError:
    """The 400 for a field that this model's engine does not offer."""
    return RequestError(
        f"'{field}' is not supported by this model: leave it out, or choose a model that offers it.",
        param=field,
        code="unsupported_parameter",
    )


def _named(error: msgspec.ValidationError) -> RequestError:
    """The library's message as a 400 with the field in `param`."""
    text = str(error)
    found = _PATH.search(text)
    field = found.group(1) if found else None
    if field is None and (missing := re.search(r"required field `(\w+)`", text)):
        field = missing.group(1)
    message = _PATH.sub("", text)
    return RequestError(f"{field}: {message}" if field else message, param=field)
