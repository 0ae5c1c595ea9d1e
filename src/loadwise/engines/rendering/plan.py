"""From a request's body to what is to be generated: prompts, sampling, stop strings, shape of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from loadwise.decision.facts import Endpoint, Feature
from loadwise.engines.rendering.bodies import Body, ChatBody, CompletionBody, TokenIds, unsupported
from loadwise.errors import RequestError
from loadwise.ports import SamplingParams

COMPLETION_MAX_TOKENS = 16
MAX_PROMPTS = 1024
# Sequences that one request may ask for, over all its prompts.
MAX_SEQUENCES = 1024
ROLES = {"system", "developer", "user", "assistant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A checked request; `sampling.max_tokens` of 0 means "what is left of the context"."""

    endpoint: Endpoint
    # One text, or ids, per prompt; chat has exactly one.
    prompts: tuple[str | tuple[int, ...], ...]
    sampling: SamplingParams
    # None: the rest of the context.
    max_tokens: int | None
    stops: tuple[str, ...] = ()
    n: int = 1
    best_of: int = 1
    echo: bool = False
    add_special: bool = True
    # How many alternatives to show per token; None shows no logprobs at all.
    top_logprobs: int | None = None
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False

    @property
    def sequences_per_prompt(self) -> int:
        """Sequences to generate for each prompt, of which the best `n` are returned."""
        return max(self.n, self.best_of)


def plan_chat(body: ChatBody, prompt: str, features: frozenset[Feature]) -> Plan:
    """The plan of a chat request whose messages became `prompt`."""
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
    alternatives = (body.top_logprobs or 0) if body.logprobs else None
    _check_features(_needed(body, alternatives, "top_logprobs"), features)
    max_tokens = _limit(body)
    return Plan(
        endpoint=Endpoint.CHAT,
        prompts=(prompt,),
        max_tokens=max_tokens,
        add_special=bool(body.add_special_tokens),
        top_logprobs=alternatives,
        **_shared(body, max_tokens, alternatives),
    )


def plan_completion(body: CompletionBody, features: frozenset[Feature]) -> Plan:
    """The plan of a completion request."""
    n, best_of = body.n or 1, body.best_of or 0
    if best_of and best_of < n:
        raise RequestError(f"best_of ({best_of}) must not be below n ({n}).", param="best_of")
    if best_of > n and body.stream:
        raise RequestError("best_of above n cannot be streamed.", param="best_of")
    if body.echo and body.logprobs is not None:
        raise RequestError(
            "echo with logprobs is not supported: prompts have no logprobs here.", param="echo"
        )
    limit = _limit(body)
    max_tokens = COMPLETION_MAX_TOKENS if limit is None else limit
    prompts = prompts_of(body.prompt)
    if len(prompts) * max(n, best_of) > MAX_SEQUENCES:
        raise RequestError(f"n: at most {MAX_SEQUENCES} answers over all prompts of a request.", param="n")
    needed = _needed(body, body.logprobs, "logprobs")
    # Choosing the best needs the logprobs of what was chosen.
    needed |= {Feature.BEST_OF: "best_of", Feature.LOGPROBS: "best_of"} if best_of > n else {}
    _check_features(needed, features)
    return Plan(
        endpoint=Endpoint.COMPLETION,
        prompts=prompts,
        max_tokens=max_tokens,
        best_of=best_of,
        echo=bool(body.echo),
        add_special=body.add_special_tokens is not False,
        top_logprobs=body.logprobs,
        **_shared(body, max_tokens, 0 if best_of > n and body.logprobs is None else body.logprobs),
    )


def prompts_of(prompt: Any) -> tuple[str | tuple[int, ...], ...]:
    """A completion's prompts in any of its four forms; `RequestError` naming `prompt` otherwise."""
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list) or not prompt:
        raise RequestError(
            "prompt must be a string, a list of strings, token ids or lists of them.", param="prompt"
        )
    if isinstance(prompt[0], int):
        return (_token_ids(prompt),)
    if len(prompt) > MAX_PROMPTS:
        raise RequestError(f"prompt: at most {MAX_PROMPTS} prompts in one request.", param="prompt")
    if all(isinstance(item, str) for item in prompt):
        return tuple(prompt)
    return tuple(_token_ids(item) for item in prompt)


def text_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose content is plain text; `RequestError` names what this model cannot read."""
    return [_text_message(message) for message in messages]


def _text_message(message: Mapping[str, Any]) -> dict[str, Any]:
    role = message.get("role")
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise RequestError(
            "messages: calls of tools and their results are not supported by this model: "
            "leave those turns out, or choose a model that offers tools.",
            param="messages",
            code="unsupported_parameter",
        )
    if role not in ROLES:
        raise RequestError(f"messages: role must be one of {', '.join(sorted(ROLES))}.", param="messages")
    content = _text_content(message.get("content"), role == "assistant")
    # A template knows `system`; `developer` is its newer name.
    kept = {"role": "system" if role == "developer" else role, "content": content}
    name = message.get("name")
    return {**kept, "name": name} if isinstance(name, str) else kept


def _text_content(content: Any, may_be_null: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and may_be_null:
        return ""
    if not isinstance(content, list):
        raise RequestError("messages: content must be a string or a list of text parts.", param="messages")
    return "".join(_part_text(part) for part in content)


def _part_text(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "refusal") or not isinstance(part.get(kind), str):
        shown = kind if isinstance(kind, str) else type(part).__name__
        raise RequestError(
            f"messages: this model reads text parts only, not {shown:.40}.",
            param="messages",
            code="unsupported_parameter",
        )
    text: str = part[kind]
    return text


def _token_ids(value: Any) -> tuple[int, ...]:
    try:
        return tuple(msgspec.convert(value, TokenIds))
    except msgspec.ValidationError as error:
        raise RequestError(f"prompt: {error}", param="prompt") from None


def _shared(body: Body, max_tokens: int | None, logprobs: int | None) -> dict[str, Any]:
    """The fields of a plan that both endpoints fill alike."""
    options = body.stream_options
    if options is not None and not body.stream:
        raise RequestError("stream_options needs stream: true.", param="stream_options")
    if max_tokens is not None and (body.min_tokens or 0) > max_tokens:
        raise RequestError(
            f"min_tokens ({body.min_tokens}) must not be above max_tokens ({max_tokens}).", param="min_tokens"
        )
    stop = body.stop
    return {
        "n": body.n or 1,
        "stops": (stop,) if isinstance(stop, str) else tuple(stop or ()),
        "stream": bool(body.stream),
        "include_usage": bool(options and options.include_usage),
        "continuous_usage": bool(options and options.include_usage and options.continuous_usage_stats),
        "sampling": _sampling(body, max_tokens or 0, logprobs),
    }


def _limit(body: ChatBody | CompletionBody) -> int | None:
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


def _sampling(body: Body, max_tokens: int, logprobs: int | None) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        temperature=_or(body.temperature, 1.0),
        top_p=_or(body.top_p, 1.0),
        top_k=max(body.top_k or 0, 0),
        min_p=_or(body.min_p, 0.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        seed=body.seed,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _needed(body: Body, alternatives: int | None, alternatives_field: str) -> dict[Feature, str]:
    """Features that the body asks for, each with the field that asks for it."""
    asked = {
        Feature.SEED: ("seed", body.seed is not None),
        Feature.TOP_K: ("top_k", (body.top_k or 0) > 0),
        Feature.MIN_P: ("min_p", bool(body.min_p)),
        Feature.STOP_TOKEN_IDS: ("stop_token_ids", bool(body.stop_token_ids)),
        Feature.IGNORE_EOS: ("ignore_eos", bool(body.ignore_eos)),
        Feature.MIN_TOKENS: ("min_tokens", bool(body.min_tokens)),
        Feature.PENALTIES: (
            "presence_penalty" if body.presence_penalty else "frequency_penalty",
            bool(body.presence_penalty or body.frequency_penalty),
        ),
        Feature.REPETITION_PENALTY: ("repetition_penalty", (body.repetition_penalty or 1.0) != 1.0),
        Feature.LOGPROBS: ("logprobs", alternatives is not None),
        Feature.TOP_LOGPROBS: (alternatives_field, bool(alternatives)),
    }
    return {feature: field for feature, (field, wanted) in asked.items() if wanted}


def _check_features(needed: Mapping[Feature, str], offered: frozenset[Feature]) -> None:
    for feature, field in needed.items():
        if feature not in offered:
            raise unsupported(field)
