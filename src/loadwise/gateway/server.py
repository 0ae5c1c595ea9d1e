"""Runs the gateway's applications on their sockets, and stops them without breaking answers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from loadwise.errors import ConfigurationError, RequestError
from loadwise.gateway.gateway import Gateway

# How long answers in flight may go on after a stop was asked for.
DRAIN_S = 30.0
KEEP_ALIVE_S = 75
BACKLOG = 2048
# Of a request's line and headers while they are incomplete. The read in which they begin counts whole
# (at most 256 KiB, perhaps with another request's body), so half of this is free for them in any case.
HEAD_LIMIT_BYTES = 512 * 1024
_TOO_LARGE = msgspec.json.encode(
    RequestError(
        f"The request's line and headers are larger than {HEAD_LIMIT_BYTES} bytes.", code="headers_too_large"
    ).body()
)
_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_TOO_LARGE), _TOO_LARGE)
)


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 whose request heads are bounded: the parser itself would keep any number of bytes."""

    # Bytes that came while a request's head was incomplete; None between head and next request.
    _head: int | None = None

    def on_message_begin(self) -> None:
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head = None
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head is not None and not self.transport.is_closing():
            self._head += len(data)
            if self._head > HEAD_LIMIT_BYTES:
                self.transport.write(_HEAD_TOO_LARGE)
                self.transport.close()


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to its owner, who may run two."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Listener:
    """One application on one bound socket; `port` is the real one, also where 0 was asked for."""

    def __init__(
        self, app: Gateway, host: str, port: int, drain_s: float = DRAIN_S, *, flag: str = "--port"
    ) -> None:
        self.app = app
        self._socket = bind(host, port, flag)
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="none",
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(drain_s)),
                backlog=BACKLOG,
            )
        )

    async def run(self) -> None:
        """Serves until `stop`; answers in flight then finish, at most for the drain time."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Readiness is false at once, and the listener closes within a tenth of a second."""
        self.app.readiness.draining = True
        self._server.should_exit = True

    def close(self) -> None:
        """Frees the socket of a listener that never ran."""
        self._socket.close()


def bind(host: str, port: int, flag: str = "--port") -> socket.socket:
    """A bound socket; `ConfigurationError` in one line when the port is taken or the address is not here.

    `flag` is the option that the message names.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"Port {port} on {host} is in use. Choose another with {flag}, or 0 for any free one."
            raise ConfigurationError(message, field=flag.lstrip("-").replace("-", "_")) from None
        reason = error.strerror or str(error)
        raise ConfigurationError(f"Cannot listen on {host}, port {port}: {reason}.", field="host") from None


async def serve(
    listeners: Sequence[Listener], on_ready: Callable[[], Awaitable[None] | None] | None = None
) -> None:
    """Serves all listeners until SIGINT, SIGTERM, or until one of them ends."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for listener in listeners:
            listener.stop()

    with _signals(loop, stop):
        tasks = [asyncio.create_task(listener.run()) for listener in listeners]
        try:
            if on_ready is not None:
                said = on_ready()
                if said is not None:
                    await said
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop()
            await asyncio.gather(*tasks)


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Generator[None, None, None]:
    handled = (signal.SIGINT, signal.SIGTERM)
    try:
        for number in handled:
            loop.add_signal_handler(number, stop)
    except (NotImplementedError, ValueError, RuntimeError):
        # Not the main thread, or a system without signals: the owner stops the listeners itself.
        yield
        return
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine to its end on the fastest event loop that is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
