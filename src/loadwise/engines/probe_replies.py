"""A server's answer to a probing question, whole or streamed, as the few things that probing looks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from loadwise.engines.events import Splitter, event_data

_THOUGHTS: Final = ("reasoning", "reasoning_content")


class Reply(NamedTuple):
    """A server's answer: status (0: none came) and its body as JSON, {} where it is none.

    Of a stream the body is what its events come to.
    """

    status: int
    body: Mapping[str, Any]
    streamed: bool = False

    @property
    def choices(self) -> list[Mapping[str, Any]]:
        """The answer's choices, as far as they are objects."""
        found = self.body.get("choices")
        return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []

    @property
    def message(self) -> Mapping[str, Any]:
        """The first choice's message."""
        return _object(self.choices[0].get("message")) if self.choices else {}

    @property
    def cut(self) -> bool:
        """Whether the first choice ended at its limit."""
        return bool(self.choices) and self.choices[0].get("finish_reason") == "length"

    @property
    def called(self) -> bool:
        """Whether the first choice calls a tool by a name."""
        calls = self.message.get("tool_calls")
        functions = [_object(_object(call).get("function")) for call in calls or ()] if _listed(calls) else []
        return any(bool(function.get("name")) for function in functions)

    @property
    def reasoned(self) -> bool:
        """Whether the answer shows that the model reasoned."""
        details = _object(_object(self.body.get("usage")).get("completion_tokens_details"))
        return bool(details.get("reasoning_tokens")) or any(
            bool(self.message.get(name)) for name in _THOUGHTS
        )

    @property
    def only_thought(self) -> bool:
        """Whether the first choice ended at its limit before it said anything but thoughts."""
        return self.reasoned and self.cut and not self.called and not self.message.get("content")

    def usage(self, name: str) -> int | None:
        """A count of tokens; None where the server does not say."""
        found = _object(self.body.get("usage")).get(name)
        return found if isinstance(found, int) else None

    @property
    def text(self) -> str:
        """The body as JSON."""
        return msgspec.json.encode(self.body).decode()

    def names(self, fields: Mapping[str, Any]) -> set[str]:
        """Those of the fields that its text names."""
        text = self.text
        return {name for name in fields if name in text}

    def refused(self, fields: Mapping[str, Any]) -> set[str]:
        """Those of the fields that this refusal names; all where it names none, and none where it is none."""
        if self.status not in (400, 422):
            return set()
        return self.names(fields) or set(fields)


def reply_of(status: int, raw: bytes) -> Reply:
    """The reply; what is neither JSON nor a stream of it is one without a body."""
    try:
        if raw.lstrip()[:1] in (b"{", b"[", b""):
            decoded = msgspec.json.decode(raw) if raw else {}
            return Reply(status, _object(decoded))
        return _gathered(status, list(_chunks(raw)))
    except (msgspec.MsgspecError, RecursionError):
        return Reply(0, {})


def _chunks(raw: bytes) -> Iterator[Mapping[str, Any]]:
    splitter = Splitter()
    for event in (*splitter.feed(raw), splitter.rest()):
        data = event_data(event)
        if data and data != b"[DONE]":
            yield _object(msgspec.json.decode(data))


def _gathered(status: int, chunks: list[Mapping[str, Any]]) -> Reply:
    """One answer of a stream's chunks; a stream that tells of an error is a refusal."""
    failed = next((chunk for chunk in chunks if chunk.get("error")), None)
    if failed is not None:
        return Reply(400 if status == 200 else status, failed, streamed=True)
    firsts = [
        choice for chunk in chunks for choice in Reply(status, chunk).choices if not choice.get("index")
    ]
    deltas = [_object(choice.get("delta")) for choice in firsts]
    calls = [call for delta in deltas if _listed(delta.get("tool_calls")) for call in delta["tool_calls"]]
    said = {
        name: "".join(str(delta[name]) for delta in deltas if delta.get(name))
        for name in ("content", *_THOUGHTS)
    }
    reason = next((found for choice in firsts if (found := choice.get("finish_reason"))), None)
    usage = next((chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage")), None)
    choice = {"message": {**said, "tool_calls": calls}, "finish_reason": reason}
    return Reply(status, {"choices": [choice] if firsts else [], "usage": usage}, streamed=bool(chunks))


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> bool:
    return isinstance(value, list)
