"""One request on its way through an engine's own server: its body in, its answer out, how it ended."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from loadwise.decision.facts import Endpoint
from loadwise.gateway.asgi import Exchange, Message, Receive, Scope, Send
from loadwise.gateway.headers import of_dispatch
from loadwise.gateway.seen import Seen

if TYPE_CHECKING:
    from loadwise.gateway.inside import Inside


class Visit:
    """Stands between the server and its application for one request."""

    __slots__ = ("_decided", "_endpoint", "_held", "_inside", "_receive", "_scope", "_seen", "_send")

    def __init__(
        self, inside: Inside, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._inside = inside
        self._endpoint = endpoint
        self._scope = scope
        self._receive = receive
        self._send = send
        # Messages that were read and not handed on yet.
        self._held: deque[Message] = deque()
        self._decided = False
        # What is seen of the answer; None where the request passes unseen.
        self._seen: Seen | None = None

    async def receive(self) -> Message:
        """The client's next message; the first call reads the body whole and decides."""
        if not self._decided:
            self._decided = True
            await self._read()
        message = self._held.popleft() if self._held else await self._receive()
        if message["type"] == "http.disconnect" and self._seen is not None:
            self._seen.left()
        return message

    async def send(self, message: Message) -> None:
        """Passes a message of the answer on; its head also says what was decided."""
        seen = self._seen
        if seen is not None:
            try:
                if message["type"] == "http.response.start":
                    seen.started(message)
                    message = {**message, "headers": [*message["headers"], *of_dispatch(seen.dispatch)]}
                else:
                    seen.passed(message, self._inside.clock.monotonic_s())
            except Exception as error:  # noqa: BLE001 - the answer goes on, whatever broke in loadwise
                self._inside.deciding.failed("answer", error)
        await self._send(message)

    def ended(self, error: BaseException | None) -> None:
        """The application is done with the request."""
        seen = self._seen
        if seen is None:
            return
        try:
            seen.ended(error, self._inside.clock.monotonic_s())
            self._inside.deciding.finish(seen.dispatch, seen.outcome)
        except Exception as own:  # noqa: BLE001 - the client has its answer, whatever broke in loadwise
            self._inside.deciding.failed("outcome", own)

    async def _read(self) -> None:
        """The body's messages are held, as one with what was decided where it came whole and in bounds."""
        message = await self._receive()
        self._held.append(message)
        size = len(message.get("body", b""))
        while message["type"] == "http.request" and message.get("more_body") and size <= self._inside.limit:
            message = await self._receive()
            self._held.append(message)
            size += len(message.get("body", b""))
        if message["type"] == "http.request" and size <= self._inside.limit:
            try:
                self._decide(b"".join([held.get("body", b"") for held in self._held]))
            except Exception as error:  # noqa: BLE001 - the request goes on as it came
                self._inside.deciding.failed("request", error)

    def _decide(self, body: bytes) -> None:
        exchange = Exchange(self._scope, self._receive, self._send)
        dispatch, changed = self._inside.decide(self._endpoint, body, exchange)
        if dispatch is None:
            return
        self._seen = Seen(dispatch)
        if changed is not body:
            self._held = deque([{"type": "http.request", "body": changed, "more_body": False}])
            self._scope["headers"] = [
                (name, b"%d" % len(changed) if name == b"content-length" else value)
                for name, value in self._scope["headers"]
            ]
