"""Reads the server-sent events of a streamed answer as cheaply as counting tokens allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Failure(msgspec.Struct):
    message: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Failure | None = None
    model: str | None = None


_DECODER = msgspec.json.Decoder(_Chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What one event of a stream says; counts are None where it carries no usage."""

    has_token: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model: str | None = None
    error: str | None = None
    done: bool = False


def parse(data: bytes) -> Event:
    """One event's data; what is no JSON of the expected shape is an error event."""
    if data == b"[DONE]":
        return Event(done=True)
    try:
        chunk = _DECODER.decode(data)
    except msgspec.DecodeError as error:
        return Event(error=f"unreadable event: {error}")
    return Event(
        has_token=any(_has_token(choice) for choice in chunk.choices),
        prompt_tokens=chunk.usage.prompt_tokens if chunk.usage else None,
        completion_tokens=chunk.usage.completion_tokens if chunk.usage else None,
        model=chunk.model,
        error=None if chunk.error is None else chunk.error.message or "error event",
    )


def _has_token(choice: _Choice) -> bool:
    # A first chunk that carries only a role is no token.
    return bool(choice.text or (choice.delta and choice.delta.content) or choice.finish_reason)


@dataclass(slots=True)
class EventReader:
    """Cuts bytes into events, wherever the network cut them."""

    _rest: bytes = field(default=b"")

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that end in this chunk."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield parse(line[5:].strip())
