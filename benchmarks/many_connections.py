"""Many connections that ask again at once: a client cheap enough that the server is what is measured."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass

import uvloop

from gateway import complete, request


@dataclass(frozen=True)
class Slice:
    """What the requests of one slice took."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float


class _Asking(asyncio.Protocol):
    """One connection; it asks until the time is over."""

    def __init__(self, data: bytes, until_s: float, taken_s: list[float]) -> None:
        self._data = data
        self._until_s = until_s
        self._taken_s = taken_s
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks for the first time."""
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer came; once it is whole, the next request goes out."""
        self._received += data
        try:
            whole = complete(self._received)
        except SystemExit as error:
            self._end(error)
            return
        if not whole:
            return
        now_s = time.perf_counter()
        self._taken_s.append(now_s - self._began_s)
        if now_s < self._until_s:
            self._ask()
        else:
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """An end before the time is an error."""
        if not self.ended.done():
            self.ended.set_exception(exc or ConnectionResetError("The server closed a connection."))

    def _ask(self) -> None:
        self._received = b""
        self._began_s = time.perf_counter()
        self._transport.write(self._data)  # type: ignore[attr-defined]

    def _end(self, error: BaseException | None) -> None:
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(RuntimeError(str(error)))
        self._transport.close()


def burst(port: int, model: str, connections: int, seconds: float) -> Slice:
    """What `connections` callers got in `seconds`; an answer that is no answer ends the program."""
    try:
        return uvloop.run(_burst(port, request(model, stream=False), connections, seconds))
    except (RuntimeError, OSError) as error:
        raise SystemExit(str(error)) from error


async def _burst(port: int, data: bytes, connections: int, seconds: float) -> Slice:
    loop, taken_s = asyncio.get_running_loop(), list[float]()
    began_s = time.perf_counter()
    until_s = began_s + seconds
    lines = [
        (await loop.create_connection(lambda: _Asking(data, until_s, taken_s), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(line.ended for line in lines))
    elapsed_s = time.perf_counter() - began_s
    p99_s = statistics.quantiles(taken_s, n=100)[98]
    return Slice(len(taken_s) / elapsed_s, 1000.0 * statistics.median(taken_s), 1000.0 * p99_s)
