"""The few ASGI pieces that the data plane needs: types, headers, and answers that are sent whole."""

from __future__ import annotations

import itertools
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import msgspec

from loadwise.decision.facts import ANONYMOUS, Principal
from loadwise.errors import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

JSON = b"application/json"
# Request ids are unique over all processes and cheap within one; they are no secrets.
_PROCESS = secrets.token_hex(8)
_COUNTER = itertools.count(1)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that lower-case name, or None."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value).decode("latin-1")
    return None


def request_id(sent: bytes | None) -> str:
    """The client's `x-request-id` where it is a plain token of at most 128 characters, else a new one."""
    if sent is not None and _REQUEST_ID.fullmatch(sent):
        return sent.decode("ascii")
    return f"req-{_PROCESS}{next(_COUNTER):010x}"


class MethodNotAllowedError(RequestError):
    """The path exists, but not for this method; `allowed` lists those it takes."""

    def __init__(self, method: str, allowed: str) -> None:
        message = f"{method:.20} is not allowed here; allowed: {allowed}."
        super().__init__(message, status=405, code="method_not_allowed")
        self.allowed = allowed


def error_headers(error: RequestError) -> RawHeaders:
    """What an error says in headers: `retry-after` in whole seconds, `www-authenticate` for 401."""
    fields: RawHeaders = []
    if error.retry_after_s is not None:
        fields.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    if error.status == 401:
        fields.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowedError):
        fields.append((b"allow", error.allowed.encode("ascii")))
    if error.status in (408, 413):
        # What is left of the body is not worth reading.
        fields.append((b"connection", b"close"))
    return fields


class Exchange:
    """One request and the way to answer it; every answer carries its request id."""

    __slots__ = ("_named", "path", "principal", "receive", "request_id", "scope", "send", "started", "status")

    def __init__(self, scope: Scope, receive: Receive, send: Send, principal: Principal = ANONYMOUS) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.principal = principal
        # The answer has begun: what goes wrong from here on can only end it.
        self.started = False
        # What was sent, and the route it was for; None before.
        self.status: int | None = None
        self.path: str | None = None
        self._named: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = request_id(self._named.get(b"x-request-id"))

    def header(self, name: bytes) -> str | None:
        """The last header of that lower-case name, or None."""
        value = self._named.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def headers(self) -> RawHeaders:
        """What every answer carries."""
        return [(b"x-request-id", self.request_id.encode("ascii"))]

    async def begin(self, status: int, headers: RawHeaders) -> None:
        """The answer has begun."""
        self.started = True
        self.status = status
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def reply(
        self,
        status: int,
        body: bytes,
        content_type: bytes = JSON,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """A whole answer is on its way."""
        length = b"%d" % len(body)
        fields = [(b"content-type", content_type), (b"content-length", length), *self.headers, *headers]
        await self.begin(status, fields)
        await self.send({"type": "http.response.body", "body": body})

    async def reply_json(self, status: int, value: Any) -> None:
        """A value is sent as JSON; NaN and infinity become null."""
        await self.reply(status, msgspec.json.encode(value))

    async def reply_error(self, error: RequestError, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """An error is sent in OpenAI's shape."""
        body = msgspec.json.encode(error.body())
        await self.reply(error.status, body, headers=[*error_headers(error), *headers])
