"""From a request's body and headers to the facts that decisions need; nothing of what it says is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import msgspec

from loadwise.decision.facts import Endpoint, Feature, Number, Principal, RequestFacts
from loadwise.decision.numbers import THINKING_BUDGETS, greedy
from loadwise.errors import RequestError
from loadwise.gateway.asgi import Exchange
from loadwise.gateway.fields import (
    GRAMMARS,
    ChatFields,
    CompletionFields,
    Fields,
    Format,
    Part,
    PassedFields,
    Turn,
    bare,
    explicit,
    said,
    wrong_field,
)
from loadwise.gateway.preferences import preference
from loadwise.ports import PromptSize

_BY_NUMBER = {
    "n": Feature.N,
    "best_of": Feature.BEST_OF,
    "seed": Feature.SEED,
    "top_k": Feature.TOP_K,
    "min_p": Feature.MIN_P,
    "min_tokens": Feature.MIN_TOKENS,
    "presence_penalty": Feature.PENALTIES,
    "frequency_penalty": Feature.PENALTIES,
    "repetition_penalty": Feature.REPETITION_PENALTY,
    "thinking_token_budget": Feature.THINKING_TOKEN_BUDGET,
    "thinking_budget": Feature.THINKING_BUDGET,
    "max_thinking_tokens": Feature.MAX_THINKING_TOKENS,
}
# Values that ask for something whatever they are: no thinking at all is a budget, too.
_ALWAYS = frozenset({"seed", *THINKING_BUDGETS})
_AUTO, _NONE = b'"auto"', b'"none"'
_LIST = ord("[")
_PARTS = msgspec.json.Decoder(list[Part])
_FORMAT = msgspec.json.Decoder(Format | None)


def read_facts(
    endpoint: Endpoint,
    fields: Fields,
    exchange: Exchange,
    size: PromptSize | None,
    model: str | None = None,
) -> RequestFacts:
    """The facts of a request; `size` None where its prompt is not measured.

    `model` is what the request counts as having named, where that is not what stands in it.
    `RequestError` 400 names a wrong field or header.
    """
    principal = exchange.principal
    conversation_id, continues = conversation(fields, exchange.header(b"x-session-id"), principal)
    numbers = explicit(fields)
    return RequestFacts(
        request_id=exchange.request_id,
        endpoint=endpoint,
        model=model or fields.model,
        prompt_tokens=None if size is None else size.exact,
        prompt_tokens_bound=None if size is None else size.bound,
        explicit=numbers,
        features=features(fields, numbers),
        stream=bool(fields.stream),
        n=int(numbers.get("n", 1)),
        conversation_id=conversation_id,
        continues=continues,
        principal=principal,
        off=_switched_off(exchange.header(b"x-loadwise")),
        quality_preference=_preference(exchange, b"x-loadwise-quality"),
        speed_preference=_preference(exchange, b"x-loadwise-speed"),
        prompt_tokens_expected=None if size is None else size.expected,
    )


def _switched_off(value: str | None) -> bool:
    if value is None or value in {"on", "off"}:
        return value == "off"
    raise RequestError(f"The header x-loadwise is 'off' or 'on', not {value!r:.80}.", param="x-loadwise")


def _preference(exchange: Exchange, name: bytes) -> float | None:
    value = exchange.header(name)
    return None if value is None else preference(value, name.decode())


def features(fields: Fields, numbers: Mapping[str, Number]) -> frozenset[Feature]:
    """What the request needs of an engine, beyond plain text; `numbers` are its explicit ones."""
    if isinstance(fields, PassedFields):
        return frozenset()
    found = {_BY_NUMBER[name] for name, value in numbers.items() if name in _BY_NUMBER and _asks(name, value)}
    if Feature.N in found and greedy(numbers):
        found.add(Feature.GREEDY_CHOICES)
    if fields.ignore_eos:
        found.add(Feature.IGNORE_EOS)
    if fields.priority:
        found.add(Feature.PRIORITY)
    if not bare(fields):
        found.update(_shared(fields))
        if isinstance(fields, ChatFields):
            found.update(_tools(fields))
    found.update(_of_chat(fields) if isinstance(fields, ChatFields) else _of_completion(fields))
    return frozenset(found)


def _asks(name: str, value: Number) -> bool:
    """Whether a number asks for its feature: some values say "as if it were absent"."""
    if name in ("n", "best_of"):
        return value > 1
    if name in ("top_k", "min_p", "min_tokens"):
        return value > 0
    if name == "repetition_penalty":
        return value != 1.0
    return name in _ALWAYS or value != 0


def _shared(fields: ChatFields | CompletionFields) -> Iterator[Feature]:
    if said(fields.logit_bias):
        yield Feature.LOGIT_BIAS
    if said(fields.stop_token_ids):
        yield Feature.STOP_TOKEN_IDS
    if _structured(fields):
        yield Feature.RESPONSE_FORMAT


def _structured(fields: ChatFields | CompletionFields) -> bool:
    if any(said(getattr(fields, name)) for name in GRAMMARS):
        return True
    if not said(fields.response_format):
        return False
    try:
        form = _FORMAT.decode(fields.response_format)
    except msgspec.ValidationError as error:
        raise wrong_field(error, "response_format") from None
    return form is not None and form.type != "text"


def _tools(fields: ChatFields) -> Iterator[Feature]:
    for name in ("functions", "function_call"):
        if said(getattr(fields, name)):
            raise RequestError(f"The field {name!r} is no longer supported; use 'tools'.", param=name)
    if said(fields.tools):
        yield from _of_tools(fields)
    if said(fields.reasoning_effort):
        yield Feature.REASONING_EFFORT
    if said(fields.audio):
        yield Feature.MEDIA


def _of_chat(fields: ChatFields) -> Iterator[Feature]:
    if fields.top_logprobs and not fields.logprobs:
        raise RequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
    if fields.logprobs:
        yield Feature.LOGPROBS
    if fields.top_logprobs:
        yield Feature.TOP_LOGPROBS
    if any(map(_about_tools, fields.messages)):
        yield Feature.TOOL_TURNS
    if any(map(_has_media, enumerate(fields.messages))):
        yield Feature.MEDIA


def _of_tools(fields: ChatFields) -> Iterator[Feature]:
    """What the request's tools ask for; a server that knows none would not know that they are forbidden."""
    raw = fields.tool_choice
    choice = bytes(raw) if said(raw) else _AUTO
    yield Feature.TOOLS if choice == _AUTO else Feature.TOOL_CHOICE
    if fields.stream and choice != _NONE:
        yield Feature.STREAMED_TOOLS


def _about_tools(turn: Turn) -> bool:
    return turn.role in ("tool", "function") or (turn.role == "assistant" and said(turn.tool_calls))


def _has_media(numbered: tuple[int, Turn]) -> bool:
    at, turn = numbered
    content = memoryview(turn.content)
    if not content or content[0] != _LIST:
        return False
    try:
        parts = _PARTS.decode(content)
    except msgspec.ValidationError as error:
        raise wrong_field(error, f"messages[{at}].content") from None
    return any(part.type not in {"text", "refusal"} for part in parts)


def _of_completion(fields: CompletionFields) -> Iterator[Feature]:
    prompt = bytes(memoryview(fields.prompt)[:64]).translate(None, b" \t\r\n")[:2]
    if prompt[:1] not in {b'"', b"["} or prompt == b"[]":
        raise RequestError(
            "prompt: expected a string, token ids, or a list of either, and not an empty one.", param="prompt"
        )
    if prompt[:1] == b"[" and prompt != b'["':
        yield Feature.TOKEN_IDS
    if fields.echo:
        yield Feature.ECHO
    if fields.suffix:
        yield Feature.SUFFIX
    if fields.logprobs is not None:
        yield Feature.LOGPROBS
        # The most likely tokens are listed beside the chosen one.
        if fields.logprobs > 0:
            yield Feature.TOP_LOGPROBS


def conversation(fields: Fields, session: str | None, principal: Principal) -> tuple[str | None, bool]:
    """(id, continues): the session's, or a hash of all turns before the first answer.

    A first turn already has its id, so that the second finds who answered it, but it continues nothing:
    equal openings of different conversations are chosen for apart.
    """
    session = session or fields.session_id
    if session:
        return _digest(principal, b"session", session.encode()), True
    if not isinstance(fields, ChatFields):
        return None, False
    roles = [turn.role for turn in fields.messages]
    continues = "assistant" in roles
    turns = fields.messages[: roles.index("assistant")] if continues else fields.messages
    opening = (part for turn in turns for part in (turn.role.encode(), turn.content))
    return _digest(principal, b"opening", *opening), continues


def _digest(principal: Principal, *parts: bytes | msgspec.Raw) -> str:
    # The separator is in no UTF-8 text, so that parts cannot run into one another.
    text = b"\xff".join((principal.key_id.encode(), *parts))
    return hashlib.blake2b(text, digest_size=16).hexdigest()
