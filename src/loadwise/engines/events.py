"""Server-sent events of an upstream: cut at their borders, read on the side, never rewritten."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from loadwise.ports import Progress

# A blank line, in any of the three line ends that the format allows.
_BLANK = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
# An event that grows beyond this is passed on unread.
MAX_EVENT_BYTES = 4 * 1024**2


class Splitter:
    """Cuts a byte stream into events; joined, they are the stream."""

    def __init__(self) -> None:
        self._buffer = b""
        self._scanned = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The events that these bytes complete, each with its blank line."""
        buffer = self._buffer + data if self._buffer else data
        events, start, scan = [], 0, max(self._scanned - 3, 0)
        while (blank := _BLANK.search(buffer, scan)) is not None:
            end = blank.end()
            if end == len(buffer) and buffer.endswith(b"\r"):
                # A line feed may follow that belongs to it.
                break
            events.append(buffer[start:end])
            start = scan = end
        self._buffer = buffer[start:]
        self._scanned = len(self._buffer)
        if self._scanned > MAX_EVENT_BYTES:
            events.append(self.rest())
        return events

    def rest(self) -> bytes:
        """What is left of an event that was not completed."""
        rest, self._buffer, self._scanned = self._buffer, b"", 0
        return rest


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Delta(Struct):
    content: Raw | UnsetType = UNSET
    reasoning_content: Raw | UnsetType = UNSET
    reasoning: Raw | UnsetType = UNSET
    tool_calls: Raw | UnsetType = UNSET

    def says_something(self) -> bool:
        """Whether it carries any part of an answer."""
        parts = (self.content, self.reasoning_content, self.reasoning, self.tool_calls)
        return any(part is not UNSET and bytes(part) not in _NOTHING for part in parts)


class _Choice(Struct):
    finish_reason: str | None = None
    delta: _Delta | None = None
    text: str | None = None


class _Body(Struct):
    """What is read of a chunk or of a whole answer."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Raw | UnsetType = UNSET


_NOTHING = (b"null", b'""', b"[]")
_read = msgspec.json.Decoder(_Body).decode


class SideReader:
    """Fills a `Progress` from what passes by; bytes that it cannot read change nothing."""

    def __init__(self, progress: Progress, now_s: Callable[[], float]) -> None:
        self._progress = progress
        self._now_s = now_s
        self._counted = 0
        self.done = False

    def event(self, raw: bytes) -> bool:
        """Reads one event; True when it is the chunk that carries usage alone."""
        data = event_data(raw)
        if data == b"[DONE]":
            self.done = True
            return False
        body = _decoded(data)
        if body is None:
            return False
        self._note(body)
        return body.usage is not None and not body.choices and body.choices is not None

    def whole(self, raw: bytes) -> None:
        """Reads the body of an answer that was not streamed."""
        body = _decoded(raw)
        if body is not None:
            self._note(body)

    def _note(self, body: _Body) -> None:
        progress = self._progress
        if body.error is not UNSET and bytes(body.error) != b"null":
            progress.failed = True
        for choice in body.choices or ():
            progress.finish_reason = choice.finish_reason or progress.finish_reason
            if choice.text or (choice.delta is not None and choice.delta.says_something()):
                self._token()
        if body.usage is not None:
            _note_usage(progress, body.usage)

    def _token(self) -> None:
        progress = self._progress
        if progress.first_token_s is None:
            progress.first_token_s = self._now_s()
        # Until usage comes: one chunk is at least one token.
        self._counted += 1
        progress.output_tokens = max(progress.output_tokens or 0, self._counted)


def _note_usage(progress: Progress, usage: _Usage) -> None:
    if usage.prompt_tokens is not None:
        progress.prompt_tokens = usage.prompt_tokens
    if usage.completion_tokens is not None:
        progress.output_tokens = usage.completion_tokens
    if usage.prompt_tokens_details is not None:
        progress.cached_tokens = usage.prompt_tokens_details.cached_tokens or 0


def event_data(raw: bytes) -> bytes:
    """An event's data: the usual single line without further ado, several joined as the format says."""
    if raw.startswith(b"data:") and raw.find(b"\n", 0, len(raw) - 2) < 0 and b"\r" not in raw:
        return raw[5:].strip()
    lines = [line[5:].removeprefix(b" ") for line in raw.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines).strip()


def _decoded(data: bytes) -> _Body | None:
    if not data.startswith(b"{"):
        return None
    try:
        return _read(data)
    except (msgspec.MsgspecError, RecursionError):
        return None
