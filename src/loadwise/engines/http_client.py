"""A lean HTTP/1.1 client for one upstream: one connection per request in flight, kept between requests.

It knows no redirects, cookies, proxies or compression.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from loadwise.engines.http_connection import BrokenAnswerError, Connection, Response

# Shorter than the five seconds after which common servers close an idle connection.
KEEP_ALIVE_S: Final = 4.0
_UNSAFE: Final = re.compile(r"[\r\n\0]")


class HttpClient:
    """Asks the server at `url` (http or https, perhaps with a path), one request per connection at a time."""

    def __init__(self, url: str, *, connect_s: float, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if secure else 80)
        self._ssl = ssl.create_default_context() if secure else None
        self._path = parts.path.rstrip("/")
        self._common = f" HTTP/1.1\r\nhost: {parts.netloc.rpartition('@')[2]}\r\nuser-agent: loadwise\r\n"
        self._connect_s = connect_s
        self._keep_alive_s = keep_alive_s
        self._open: set[Connection] = set()
        # The longest idle first; the one used last is taken first, so that the others grow too old.
        self._idle: deque[Connection] = deque()

    async def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        until_s: float | None = None,
    ) -> Response:
        """The answer once its head is there, at most until then by the loop's clock.

        Raises `OSError` (`TimeoutError` where that, or connecting, takes too long), or `ValueError` for a
        header that would end its line. Where a kept connection turns out to be closed, a new one is asked.
        """
        data = self._head(method, path, headers, len(body)) + body
        kept = self._kept()
        if kept is not None:
            try:
                return await kept.ask(data, until_s)
            except BrokenAnswerError:
                if kept.heard:
                    raise
        return await (await self._connected(until_s)).ask(data, until_s)

    async def close(self) -> None:
        """Every connection is closed; answers on their way break off."""
        for connection in list(self._open):
            connection.abort()
        # Transports say goodbye in the loop's next turn.
        await asyncio.sleep(0)

    def _head(self, method: str, path: str, headers: Mapping[str, str], length: int) -> bytes:
        if _UNSAFE.search("".join(headers.values())):
            raise ValueError("a header's value must not end its line")
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        sized = f"content-length: {length}\r\n\r\n" if length or method != "GET" else "\r\n"
        return f"{method} {self._path}{path}{self._common}{lines}{sized}".encode("latin-1")

    async def _connected(self, until_s: float | None) -> Connection:
        loop = asyncio.get_running_loop()
        longest_s = loop.time() + self._connect_s
        async with asyncio.timeout_at(longest_s if until_s is None else min(longest_s, until_s)):
            _, connection = await loop.create_connection(
                lambda: Connection(self), self._host, self._port, ssl=self._ssl
            )
        return connection

    def _kept(self) -> Connection | None:
        """The connection used last, unless it is too old or was closed; older ones go."""
        oldest_s = asyncio.get_running_loop().time() - self._keep_alive_s
        while self._idle and self._idle[0].idle_since_s < oldest_s:
            self._idle.popleft().abort()
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    # --- what connections tell it ---

    def opened(self, connection: Connection) -> None:
        """A connection exists."""
        self._open.add(connection)

    def keep(self, connection: Connection) -> None:
        """A connection is free for the next request."""
        connection.idle_since_s = asyncio.get_running_loop().time()
        self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is closed."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
