"""How each endpoint's answers are read on the side, and how its streams end: one reader each, in a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Protocol

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from loadwise.decision.facts import Endpoint
from loadwise.engines.events import SideReader, event_data
from loadwise.errors import RequestError
from loadwise.ports import Progress

DONE: Final = b"data: [DONE]\n\n"


class Reader(Protocol):
    """Fills a `Progress` from an answer that passes by; bytes that it cannot read change nothing."""

    # Whether the stream said itself that it is over.
    done: bool

    def event(self, raw: bytes) -> bool:
        """Reads one event; True when it is a chunk of usage that only we asked for."""
        ...

    def whole(self, raw: bytes) -> None:
        """Reads the body of an answer that was not streamed."""
        ...

    def closing(self) -> bytes:
        """What a complete stream that did not say so is closed with."""
        ...

    def broken(self, error: RequestError) -> bytes:
        """The event that tells a client of a stream broken in the middle."""
        ...


class CompletionReader(SideReader):
    """Chat and text completions: choices, usage, and `[DONE]` at the end."""

    def closing(self) -> bytes:
        """`[DONE]`, as every such stream ends."""
        return DONE

    def broken(self, error: RequestError) -> bytes:
        """An error chunk and `[DONE]`."""
        return b"data: " + msgspec.json.encode(error.body()) + b"\n\n" + DONE


class _Usage(Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    # Embeddings and transcriptions name it so.
    prompt_tokens: int | None = None


class _Message(Struct):
    usage: _Usage | None = None
    stop_reason: str | None = None
    status: str | None = None


class _Event(Struct):
    """What is read of an event, or of a whole answer, of the typed dialects."""

    type: str | None = None
    usage: _Usage | None = None
    response: _Message | None = None
    message: _Message | None = None
    # A piece of text in one dialect, an object in the other.
    delta: Raw | UnsetType = UNSET
    stop_reason: str | None = None
    status: str | None = None


_read = msgspec.json.Decoder(_Event).decode
_read_delta = msgspec.json.Decoder(_Message).decode


class TypedReader:
    """Streams of events with a `type`: OpenAI's Responses and Anthropic's Messages."""

    # Types that carry a piece of the answer, that end the stream, and that tell of a failure.
    PIECES: Final = frozenset({"content_block_delta"})
    ENDS: Final = frozenset({"message_stop", "response.completed", "response.incomplete", "response.failed"})
    FAILURES: Final = frozenset({"error", "response.failed"})

    def __init__(self, progress: Progress, now_s: Callable[[], float]) -> None:
        self._progress = progress
        self._now_s = now_s
        self._pieces = 0
        self.done = False

    def event(self, raw: bytes) -> bool:
        """Reads one event; nothing is ever left out."""
        self._note(event_data(raw))
        return False

    def whole(self, raw: bytes) -> None:
        """Reads usage and how it ended."""
        self._note(raw)

    def closing(self) -> bytes:
        """Nothing: the last event of these dialects is the engine's to say."""
        return b""

    def broken(self, error: RequestError) -> bytes:
        """An `error` event."""
        told = {"type": "error", **error.body()}
        return b"event: error\ndata: " + msgspec.json.encode(told) + b"\n\n"

    def _note(self, data: bytes) -> None:
        try:
            event = _read(data)
            closing = _read_delta(event.delta) if event.type == "message_delta" and event.delta else None
        except (msgspec.MsgspecError, RecursionError):
            return
        kind, progress = event.type or "", self._progress
        if kind in self.PIECES or (kind.startswith("response.") and kind.endswith(".delta")):
            self._piece()
        progress.failed |= kind in self.FAILURES
        self.done |= kind in self.ENDS
        for part in (event, event.response, event.message, closing):
            if part is not None:
                self._part(part)

    def _part(self, part: _Event | _Message) -> None:
        if part.usage is not None:
            self._usage(part.usage)
        ended = part.stop_reason or part.status
        # Where chat says "stop", Messages say "end_turn" and Responses "completed".
        if ended and ended != "in_progress":
            natural = ended in {"end_turn", "stop_sequence", "completed"}
            self._progress.finish_reason = "stop" if natural else ended

    def _piece(self) -> None:
        if self._progress.first_token_s is None:
            self._progress.first_token_s = self._now_s()
        # Until usage comes: one piece is at least one token.
        self._pieces += 1
        self._progress.output_tokens = max(self._progress.output_tokens or 0, self._pieces)

    def _usage(self, usage: _Usage) -> None:
        prompt = usage.input_tokens if usage.input_tokens is not None else usage.prompt_tokens
        if prompt:
            self._progress.prompt_tokens = prompt
        if usage.output_tokens is not None:
            self._progress.output_tokens = usage.output_tokens


class PlainReader(TypedReader):
    """Embeddings, audio, images: only usage is read, and a stream ends when its connection says so."""

    def __init__(self, progress: Progress, now_s: Callable[[], float]) -> None:
        super().__init__(progress, now_s)
        self.done = True


READERS: Final[Mapping[Endpoint, Callable[[Progress, Callable[[], float]], Reader]]] = MappingProxyType(
    {
        Endpoint.CHAT: CompletionReader,
        Endpoint.COMPLETION: CompletionReader,
        Endpoint.RESPONSES: TypedReader,
        Endpoint.MESSAGES: TypedReader,
    }
)


def reader_of(endpoint: Endpoint, progress: Progress, now_s: Callable[[], float]) -> Reader:
    """The reader of an endpoint's answers."""
    return READERS.get(endpoint, PlainReader)(progress, now_s)
