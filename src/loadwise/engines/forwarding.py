"""What of a call goes to an upstream, and what of its answer comes back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Raw

from loadwise.decision.facts import GENERATED
from loadwise.errors import RequestError
from loadwise.ports import Call

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    }
)
# Ours to say towards an upstream, never the client's.
OWN_REQUEST = frozenset(
    {"host", "content-length", "content-type", "authorization", "cookie", "accept-encoding", "expect"}
)
# The gateway's to say towards a client.
OWN_RESPONSE = frozenset({"content-length", "set-cookie", "server", "date", "x-request-id", "alt-svc"})

_NOT_SENT = HOP_BY_HOP | OWN_REQUEST
_NOT_RELAYED = HOP_BY_HOP | OWN_RESPONSE
_UNSAFE = re.compile(r"[\r\n\0]")

_fields = msgspec.json.Decoder(dict[str, Raw])
_options = msgspec.json.Decoder(dict[str, Raw])


def request_headers(call: Call, api_key: str | None) -> dict[str, str]:
    """Headers of the upstream request; the client's own key never leaves."""
    headers = {
        "content-type": call.content_type,
        "accept": _accepted(call),
        # Answers are read on the side, so they must not be compressed.
        "accept-encoding": "identity",
        "x-request-id": call.request_id,
    }
    if call.headers:
        dropped = _NOT_SENT | headers.keys() | _named_by_connection(call.headers.items())
        headers |= {name: value for name, value in call.headers.items() if name.lower() not in dropped}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    return headers


def _accepted(call: Call) -> str:
    if call.stream:
        return "text/event-stream"
    return "application/json" if call.endpoint in GENERATED else "*/*"


def response_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers of the client's answer."""
    pairs = [(name.lower(), value) for name, value in headers]
    dropped = _NOT_RELAYED | _named_by_connection(pairs)
    return [(name, value) for name, value in pairs if name not in dropped and not _UNSAFE.search(value)]


def outgoing(body: bytes, model: str | None, *, usage: bool = False) -> tuple[bytes, bool]:
    """The body naming the upstream's model; with `usage`, asking for it where the client did not.

    Whether it asks is the second value. Byte for byte the same where nothing changes.
    """
    if model is None and not usage:
        return body, False
    fields, changes = _decode(body), {}
    if model is not None and bytes(fields.get("model", b"")) != (name := msgspec.json.encode(model)):
        changes["model"] = Raw(name)
    options = _asking(fields) if usage else None
    if options is not None:
        changes["stream_options"] = Raw(options)
    return (msgspec.json.encode(fields | changes) if changes else body), options is not None


def _asking(fields: Mapping[str, Raw]) -> bytes | None:
    """The options of a stream that tell usage, or None where the client asked for it itself."""
    try:
        options = _options.decode(fields["stream_options"]) if "stream_options" in fields else {}
    except msgspec.MsgspecError:
        # Null, or nothing that a server will take: null is replaced, the rest is the server's to refuse.
        if bytes(fields["stream_options"]) != b"null":
            return None
        options = {}
    if bytes(options.get("include_usage", Raw(b"null"))) == b"true":
        return None
    return msgspec.json.encode(options | {"include_usage": Raw(b"true")})


def _decode(body: bytes) -> dict[str, Raw]:
    try:
        return _fields.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        raise RequestError("The request body must be a JSON object.") from None


def _named_by_connection(headers: Iterable[tuple[str, str]]) -> set[str]:
    """Headers that are meant for this connection alone (RFC 9110, section 7.6.1)."""
    return {
        part.strip().lower()
        for name, value in headers
        if name.lower() == "connection"
        for part in value.split(",")
    }
