"""Request bodies: read within bounds, checked for shape, edited without touching the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from loadwise.decision.facts import Number
from loadwise.errors import RequestError
from loadwise.gateway.asgi import Receive, Scope, header
from loadwise.gateway.departure import ClientLeft

DEPTH_LIMIT = 64
# A body that is too large is read to its end, and forgotten, up to this many times the limit.
_DISCARDED = 4
# Bodies above this are checked in a thread, piece by piece, so that the event loop goes on.
_PIECE_BYTES = 256 * 1024
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def too_large(limit_bytes: int) -> RequestError:
    """The answer to a body above the limit."""
    return RequestError(
        f"The request's body is larger than {limit_bytes} bytes, which is the operator's body_limit_bytes.",
        status=413,
        code="body_too_large",
    )


async def read_body(scope: Scope, receive: Receive, limit_bytes: int, timeout_s: float) -> bytes:
    """The whole body, at most `limit_bytes`.

    Raises `RequestError` (413 too large, 408 not complete after `timeout_s`) or `ClientLeft`.
    """
    declared = header(scope, b"content-length")
    length = int(declared) if declared is not None and declared.isdecimal() else 0
    if length > limit_bytes and not _worth_discarding(scope, length, limit_bytes):
        raise too_large(limit_bytes)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if max(length, len(body)) > limit_bytes:
            raise too_large(limit_bytes)
        return body
    try:
        async with asyncio.timeout(timeout_s):
            return await _read_pieces(message, receive, limit_bytes, length)
    except TimeoutError:
        raise RequestError(
            f"The request's body was not complete after {timeout_s:g} s.", status=408, code="body_timeout"
        ) from None


def _worth_discarding(scope: Scope, length: int, limit_bytes: int) -> bool:
    """Whether to take a body that is too large, for nothing.

    Most clients look for an answer only when all is sent: closed before, they would see a broken connection.
    Who waits for `100 Continue` has sent nothing yet.
    """
    return length <= _DISCARDED * limit_bytes and header(scope, b"expect") is None


async def _read_pieces(message: Any, receive: Receive, limit_bytes: int, length: int) -> bytes:
    pieces, seen = bytearray(), 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientLeft("the client left while sending its request")
        body = message.get("body", b"")
        seen += len(body)
        if max(seen, length) <= limit_bytes:
            pieces += body
        elif seen > _DISCARDED * limit_bytes or not message.get("more_body"):
            raise too_large(limit_bytes)
        else:
            pieces.clear()
        if not message.get("more_body"):
            return bytes(pieces)
        message = await receive()


async def check_text(body: bytes) -> None:
    """Passes a body that is UTF-8 and not nested deeper than 64; else raises `RequestError` 400."""
    if len(body) <= _PIECE_BYTES:
        _check_text(body)
    else:
        await asyncio.to_thread(_check_text, body)


def _check_text(body: bytes) -> None:
    if not body.isascii():
        try:
            body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(
                f"The request's body is not UTF-8: byte {error.start} is wrong.", code="invalid_utf8"
            ) from None
    if deeper_than(body, DEPTH_LIMIT):
        raise RequestError(f"The request's body is nested deeper than {DEPTH_LIMIT}.", code="too_deep")


def deeper_than(body: bytes, limit: int) -> bool:
    """Whether a JSON text nests its arrays and objects deeper than `limit`, in time linear in its size."""
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    brackets = b"".join(_brackets(body))
    # Each round takes away the innermost pairs, so what is left after `limit` rounds is deeper.
    for _ in range(limit):
        shorter = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(shorter) == len(brackets):
            # Either nothing is left, or the rest has no pairs: no JSON, which the decoder will say.
            return False
        brackets = shorter
    return bool(brackets)


def _brackets(body: bytes) -> Iterator[bytes]:
    """The brackets outside strings, piece by piece, which bounds the memory that the pieces take."""
    # Pairs first: an escaped backslash does not escape the quote behind it.
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    inside = False
    for start in range(0, len(plain), _PIECE_BYTES):
        parts = plain[start : start + _PIECE_BYTES].split(b'"')
        yield b"".join(parts[1 if inside else 0 :: 2]).translate(None, _NOT_BRACKETS)
        inside ^= len(parts) % 2 == 0


def decode_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """A JSON object's fields with their values' own bytes; `RequestError` 400 when it is none."""
    try:
        return _FIELDS.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise not_an_object(error) from None


def not_an_object(error: Exception) -> RequestError:
    """The answer to a body that is no JSON object."""
    return RequestError(f"The request's body must be a JSON object: {error}.", code="invalid_json")


def edited(body: bytes, changes: Mapping[str, Number | str], present: frozenset[str]) -> bytes:
    """The body with `changes` set and all other values byte for byte as they were.

    `present` names the changed fields that the body already has; absent ones are put in front.
    """
    if not changes:
        return body
    if changes.keys() & present:
        fields: dict[str, Any] = {**decode_fields(body), **changes}
        return msgspec.json.encode(fields)
    added = msgspec.json.encode(dict(changes))
    at = body.index(b"{") + 1
    return b"".join((body[:at], added[1:-1], b",", body[at:]))
