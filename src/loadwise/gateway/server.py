"""Runs the gateway's applications on their sockets, and stops them without breaking answers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any

import uvicorn

from loadwise.errors import ConfigurationError
from loadwise.gateway.gateway import Gateway
from loadwise.gateway.heads import BoundedHeads

# How long answers in flight may go on after a stop was asked for.
DRAIN_S = 30.0
KEEP_ALIVE_S = 75
BACKLOG = 2048


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to its owner, who may run two."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Place:
    """An address that is taken; whoever connects is refused until a listener has it.

    `port` is the real one, also where 0 was asked for; `flag` is the option that messages name.
    Raises `ConfigurationError` in one line when the port is in use or the address is not of this machine.
    """

    def __init__(self, host: str, port: int, flag: str = "--port") -> None:
        self.host = host
        self._flag = flag
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if self._socket.family is socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # A server that ended a moment ago leaves its port waiting, which is no use of it.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with self._explained(port):
            self._socket.bind((host, port))
        self.port: int = self._socket.getsockname()[1]

    def listen(self) -> socket.socket:
        """The socket, which takes connections from now on; the same error when another was faster."""
        with self._explained(self.port):
            self._socket.listen(BACKLOG)
        return self._socket

    def close(self) -> None:
        """Frees the address."""
        self._socket.close()

    @contextlib.contextmanager
    def _explained(self, port: int) -> Generator[None, None, None]:
        try:
            yield
        except OSError as error:
            self.close()
            raise _unusable(self.host, port, self._flag, error) from None


def _unusable(host: str, port: int, flag: str, error: OSError) -> ConfigurationError:
    if error.errno == errno.EADDRINUSE:
        message = f"Port {port} on {host} is in use. Choose another with {flag}, or 0 for any free one."
        return ConfigurationError(message, field=flag.lstrip("-").replace("-", "_"))
    return ConfigurationError(
        f"Cannot listen on {host}, port {port}: {error.strerror or error}.", field="host"
    )


class Listener:
    """One application on one address, which takes connections from now on."""

    def __init__(self, app: Gateway, place: Place, drain_s: float = DRAIN_S) -> None:
        self.app = app
        self._socket = place.listen()
        self.host, self.port = place.host, place.port
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="none",
                http=BoundedHeads,
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
