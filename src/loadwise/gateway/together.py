"""A transport that sends an answer's head together with what follows at once: one packet, one wake-up.

uvicorn writes a head as soon as it is known, and uvloop sends each write by itself; ASGI would have the head
wait for the first piece of the body. A head that nothing follows within the turn of the loop goes out alone.
"""

from __future__ import annotations

import asyncio
from typing import Any

_HEAD = b"HTTP/1.1 "


class Together:
    """Wraps a connection's transport; what is not written passes through to it."""

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        # A head that waits until the end of this turn of the loop; empty where none does.
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """The bytes are on their way, after all that were written before them."""
        if self._held:
            data, self._held = self._held + data, b""
        elif data.startswith(_HEAD):
            # A piece of a body that begins like a head merely waits for the turn's end.
            self._held = data
            self._loop.call_soon(self._send)
            return
        self._transport.write(data)

    def close(self) -> None:
        """The connection closes once all that was written is sent."""
        self._send()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the connection is closed, or about to be."""
        return self._transport.is_closing()

    def _send(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)
