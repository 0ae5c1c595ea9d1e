"""The ASGI application: finds the route, says who asks, and answers errors in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from loadwise.errors import EngineError, RequestError
from loadwise.gateway.asgi import Exchange, MethodNotAllowedError, Receive, Scope, Send
from loadwise.gateway.auth import Guard
from loadwise.gateway.data_plane import Readiness, Telemetry
from loadwise.gateway.departure import ClientLeft
from loadwise.gateway.routes import MODEL_PREFIX
from loadwise.logs import REQUEST_ID, get_logger, said_by

log = get_logger(__name__)
Handler = Callable[[Exchange], Awaitable[None]]
# How requests for a path that does not exist are counted.
NO_PATH = "none"
# Method -> (handler, scope that it needs).
Methods = Mapping[str, tuple[Handler, str | None]]


class Gateway:
    """Serves `table`: exact path -> method -> handler. What is not in it does not exist."""

    def __init__(
        self, table: Mapping[str, Methods], guard: Guard, readiness: Readiness, telemetry: Telemetry
    ) -> None:
        self.readiness = readiness
        # Exact path -> method -> (handler, scope); read by tests of who may do what.
        self.table = table
        self._models = table.get(MODEL_PREFIX + "{model}")
        self._guard = guard
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection is served."""
        if scope["type"] == "http":
            await self._http(Exchange(scope, receive, send))
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, exchange: Exchange) -> None:
        REQUEST_ID.set(exchange.request_id)
        try:
            handler, scope = self._route(exchange)
            exchange.principal = self._guard.authorize(exchange.scope["headers"], scope)
            await handler(exchange)
        except ClientLeft:
            log.debug("client_left")
        except (RequestError, EngineError) as error:
            if exchange.started:
                raise
            await exchange.reply_error(error if isinstance(error, RequestError) else _no_engine(error))
        except Exception:
            log.exception("unexpected_error")
            if exchange.started:
                raise
            await exchange.reply_error(_unexpected(exchange.request_id))
        finally:
            self._telemetry.answered(exchange.path or NO_PATH, exchange.status)

    def _route(self, exchange: Exchange) -> tuple[Handler, str | None]:
        path, method = exchange.scope["path"], exchange.scope["method"]
        known, methods = path, self.table.get(path)
        if methods is None and path.startswith(MODEL_PREFIX) and len(path) > len(MODEL_PREFIX):
            known, methods = MODEL_PREFIX + "{model}", self._models
        exchange.path = None if methods is None else known
        if methods is None:
            raise RequestError(f"There is nothing at {path!r:.200}.", status=404, code="not_found")
        found = methods.get(method)
        if found is None:
            allowed = ", ".join(sorted(methods))
            raise MethodNotAllowedError(method, allowed)
        return found


def _no_engine(error: EngineError) -> RequestError:
    log.warning("engine_could_not_be_asked", error=said_by(error))
    return RequestError(
        "The engine could not be reached. Try again.", status=502, kind="server_error", code="engine_failed"
    )


def _unexpected(request_id: str) -> RequestError:
    return RequestError(
        f"Something went wrong inside loadwise; its log says more under {request_id}.",
        status=500,
        kind="server_error",
        code="internal_error",
    )


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
