"""The request fields that decisions need, with their types and ranges as data; all others pass unread."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from loadwise.decision.facts import Endpoint, Number
from loadwise.decision.numbers import CHOSEN
from loadwise.errors import RequestError

Flag = bool | None
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)] | None | UnsetType
CountOrNone = Annotated[int, Meta(ge=0, le=2**31 - 1)] | None | UnsetType
Penalty = Annotated[float, Meta(ge=-2, le=2)] | None | UnsetType
Share = Annotated[float, Meta(ge=0, le=1)] | None | UnsetType

ABSENT = Raw()
# How grammars are asked for outside OpenAI's `response_format`.
GRAMMARS = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")

Role = Literal["developer", "system", "user", "assistant", "tool", "function"]


class Turn(Struct, gc=False):
    """One message; its content stays as the client wrote it."""

    role: Role
    content: Raw = ABSENT
    tool_calls: Raw = ABSENT


class Part(Struct, gc=False):
    """One part of a message's content."""

    type: str = "text"


class Format(Struct, gc=False):
    """The kind of a `response_format`."""

    type: str


class StreamOptions(Struct, gc=False):
    """What a client may ask of its stream."""

    include_usage: Flag = None


class CommonFields(Struct, kw_only=True, gc=False):
    """Fields that chat and text completions share. `ABSENT` means absent."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    stream: Flag = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | UnsetType | None = UNSET
    max_completion_tokens: Count = UNSET
    temperature: Annotated[float, Meta(ge=0, le=2)] | UnsetType | None = UNSET
    top_p: Share = UNSET
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | UnsetType | None = UNSET
    min_p: Share = UNSET
    presence_penalty: Penalty = UNSET
    frequency_penalty: Penalty = UNSET
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | UnsetType | None = UNSET
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | UnsetType | None = UNSET
    min_tokens: CountOrNone = UNSET
    thinking_token_budget: CountOrNone = UNSET
    thinking_budget: CountOrNone = UNSET
    max_thinking_tokens: CountOrNone = UNSET
    ignore_eos: Flag = None
    # Which of the requests that wait an engine takes first.
    priority: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    session_id: str | None = None
    logit_bias: Raw = ABSENT
    stop_token_ids: Raw = ABSENT
    response_format: Raw = ABSENT
    structured_outputs: Raw = ABSENT
    guided_json: Raw = ABSENT
    guided_regex: Raw = ABSENT
    guided_choice: Raw = ABSENT
    guided_grammar: Raw = ABSENT


class ChatFields(CommonFields, kw_only=True, gc=False):
    """What is read of a chat completion."""

    messages: Annotated[list[Turn], Meta(min_length=1)]
    max_tokens: Count = UNSET
    logprobs: Flag = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Raw = ABSENT
    tool_choice: Raw = ABSENT
    functions: Raw = ABSENT
    function_call: Raw = ABSENT
    reasoning_effort: Raw = ABSENT
    audio: Raw = ABSENT


class CompletionFields(CommonFields, kw_only=True, gc=False):
    """What is read of a text completion."""

    prompt: Raw
    # 0 asks for the prompt's own logprobs, with `echo`.
    max_tokens: CountOrNone = UNSET
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: Annotated[int, Meta(ge=0, le=20)] | UnsetType | None = UNSET
    echo: Flag = None
    suffix: str | None = None


class PassedFields(Struct, kw_only=True, gc=False):
    """What is read of a request that is passed on as it is: whom it is for, and what ceilings bind."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    stream: Flag = None
    session_id: str | None = None
    max_tokens: CountOrNone = UNSET
    max_output_tokens: CountOrNone = UNSET
    temperature: float | UnsetType | None = UNSET
    top_p: float | UnsetType | None = UNSET
    top_k: int | UnsetType | None = UNSET
    n: int | UnsetType | None = UNSET


Fields = ChatFields | CompletionFields | PassedFields
_PASSED = msgspec.json.Decoder(PassedFields)
_DECODERS: Mapping[Endpoint, msgspec.json.Decoder[Fields]] = {
    Endpoint.CHAT: msgspec.json.Decoder(ChatFields),
    Endpoint.COMPLETION: msgspec.json.Decoder(CompletionFields),
}
# Names of fields with the one call that reads them all.
Read = tuple[tuple[str, ...], Callable[[Fields], tuple[Any, ...]]]


def _read(kind: type[Fields], names: Iterable[str]) -> Read:
    there = tuple(name for name in names if name in kind.__struct_fields__)
    return there, attrgetter(*there)


_KINDS: tuple[type[Fields], ...] = (ChatFields, CompletionFields, PassedFields)
_NUMBERS = {kind: _read(kind, CHOSEN) for kind in _KINDS}
# What stays unread until it is asked what it says.
_UNREAD = ("logit_bias", "stop_token_ids", "response_format", *GRAMMARS)
_UNREAD_OF_CHATS = ("tools", "functions", "function_call", "reasoning_effort", "audio")
_RAW = {kind: _read(kind, (*_UNREAD, *_UNREAD_OF_CHATS)) for kind in (ChatFields, CompletionFields)}
_NONE_THERE = {kind: (ABSENT,) * len(names) for kind, (names, _) in _RAW.items()}
_WHERE = re.compile(r"^(?P<what>.*) - at `\$\.?(?P<where>[^`]*)`$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<where>[^`]+)`")


def decode(endpoint: Endpoint, body: bytes) -> Fields:
    """The fields that decisions need; `RequestError` 400 names the field that is wrong, and its range."""
    try:
        return _DECODERS.get(endpoint, _PASSED).decode(body)
    except msgspec.ValidationError as error:
        raise wrong_field(error) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(f"The request's body is no valid JSON: {error}.", code="invalid_json") from None


def wrong_field(error: Exception, prefix: str = "") -> RequestError:
    """The answer to a field of a wrong type or outside its range; `prefix` is where the value stood."""
    text = str(error)
    place = _WHERE.match(text)
    missing = _MISSING.search(text)
    path = [prefix, place["where"] if place else "", missing["where"] if missing else ""]
    where = ".".join(part for part in path if part).replace(".[", "[")
    if missing is not None:
        return RequestError(f"{where}: this field is required.", param=where)
    if where:
        what = place["what"] if place else text
        # The library names the values that are allowed for no kind of choice.
        allowed = f" Allowed: {', '.join(get_args(Role))}." if where.endswith("].role") else ""
        return RequestError(f"{where}: {what}.{allowed}", param=where)
    return RequestError(f"The request's body must be a JSON object: {text}.", code="invalid_json")


def said(raw: Raw) -> bool:
    """Whether a field is there and says something: not null, not empty."""
    return raw is not ABSENT and bytes(raw) not in (b"", b"null", b"[]", b"{}", b'""')


def explicit(fields: Fields) -> dict[str, Number]:
    """The numbers that the client set itself."""
    names, read = _NUMBERS[type(fields)]
    pairs = zip(names, read(fields), strict=True)
    return {name: value for name, value in pairs if value is not UNSET and value is not None}


def bare(fields: ChatFields | CompletionFields) -> bool:
    """Whether no field is there that must be read to know what it asks for: true of most requests."""
    kind = type(fields)
    return _RAW[kind][1](fields) == _NONE_THERE[kind]


def present(fields: Fields, names: Mapping[str, Number]) -> frozenset[str]:
    """Those of the names that stand in the body, null included."""
    return frozenset(name for name in names if getattr(fields, name, None) is not UNSET)
