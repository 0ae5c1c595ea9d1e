"""Which field of a request asked for a feature: what a refusal names, so that the client finds it."""

from __future__ import annotations

from loadwise.decision.facts import Feature
from loadwise.errors import RequestError
from loadwise.gateway.fields import GRAMMARS, ChatFields, CompletionFields, Fields, PassedFields, said

UNSUPPORTED = "unsupported_parameter"


def in_the_clients_words(error: RequestError, fields: Fields) -> RequestError:
    """A refusal for a missing feature that names the field which the client sent; others as they are."""
    if error.code != UNSUPPORTED or error.param is None:
        return error
    param, what = _asked(error.param, fields)
    if what is None:
        return error
    return RequestError(
        f"{param}: {what} not supported by the models behind {fields.model!r:.200}. Leave that out.",
        status=error.status,
        param=param,
        code=UNSUPPORTED,
    )


def _asked(feature: str, fields: Fields) -> tuple[str, str | None]:
    """(field, what of it is refused); None where the feature has the field's own name."""
    if feature == Feature.MEDIA and isinstance(fields, ChatFields):
        if said(fields.audio):
            return "audio", "answers in audio are"
        return "messages", "images, audio and files are"
    if feature == Feature.TOKEN_IDS:
        return "prompt", "token ids are"
    if feature == Feature.TOOL_TURNS:
        return "messages", "calls of tools and their results are"
    if feature == Feature.STREAMED_TOOLS:
        return "stream", "calls of tools in a stream are"
    if feature == Feature.GREEDY_CHOICES:
        return "n", "several choices of greedy sampling (temperature 0) are"
    if feature == Feature.TOP_LOGPROBS and isinstance(fields, CompletionFields):
        return "logprobs", "the most likely tokens (values above 0) are"
    if feature == Feature.RESPONSE_FORMAT and not isinstance(fields, PassedFields):
        given = [name for name in GRAMMARS if said(getattr(fields, name))]
        return (given[0], "structured output is") if given else (feature, None)
    if feature == Feature.PENALTIES and not getattr(fields, "frequency_penalty", None):
        return "presence_penalty", "penalties are"
    return feature, None
