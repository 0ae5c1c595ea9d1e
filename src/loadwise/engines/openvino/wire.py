"""What server and child say to each other: length-prefixed msgpack frames over the child's pipes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

from loadwise.ports import SamplingParams

# How a sequence's event ends it.
GOES_ON, STOPPED, REACHED_LENGTH, LOST = range(4)


class Load(msgspec.Struct, array_like=True, tag=0):
    """The first message: what to load and how large."""

    folder: str
    max_running: int
    kv_cache_bytes: int
    context_tokens: int
    threads: int | None
    # Of the device, by OpenVINO's names; none: those of the precision that suits the processor.
    properties: dict[str, str] = {}


class Submit(msgspec.Struct, array_like=True, tag=1):
    """Generate a sequence; `stop_ids` include end-of-sequence unless it is to be ignored."""

    key: int
    prompt_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    sampling: SamplingParams


class Cancel(msgspec.Struct, array_like=True, tag=2):
    """Forget a sequence before the next step."""

    key: int


class Ready(msgspec.Struct, array_like=True, tag=0):
    """The model is loaded."""

    kv_cache_bytes: int
    kv_cache_tokens: int


class Event(msgspec.Struct, array_like=True):
    """New tokens of one sequence."""

    key: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    ending: int


class Step(msgspec.Struct, array_like=True, tag=1):
    """One step's news of all sequences, and what runs after it."""

    events: list[Event]
    running: int
    waiting: int
    # Of the cache, held by sequences that run (prefixes kept for later are free for the taking).
    held_tokens: int


class Failed(msgspec.Struct, array_like=True, tag=2):
    """The child cannot go on; it ends after this."""

    message: str


Request = Load | Submit | Cancel
News = Ready | Step | Failed

_encoder = msgspec.msgpack.Encoder()
T = TypeVar("T")


def frame(message: Any) -> bytes:
    """A message as it goes through the pipe."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "little") + body


class Frames(Generic[T]):
    """Cuts a pipe's bytes into messages."""

    def __init__(self, kind: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[T]:
        """The messages that these bytes complete."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= 4:
            end = start + 4 + int.from_bytes(buffer[start : start + 4], "little")
            if len(buffer) < end:
                break
            yield self._decode(bytes(buffer[start + 4 : end]))
            start = end
        del buffer[:start]
