"""Middleware on an engine's own request path: it tunes what a client left open and notes how it went.

It stands behind the engine's authentication and reads a body only when the engine's handler asks for it.
Bytes of answers pass as they are; what goes wrong in loadwise is told on and changes no answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from loadwise.decision.facts import Endpoint, Outcome, RequestFacts
from loadwise.errors import RequestError
from loadwise.gateway.asgi import Exchange, Receive, Scope, Send
from loadwise.gateway.body import edited
from loadwise.gateway.fields import Fields, decode, present
from loadwise.gateway.reading import read_facts
from loadwise.gateway.visit import Visit
from loadwise.ports import Clock, Dispatch, PromptSize

ENDPOINTS: Final[Mapping[str, Endpoint]] = {endpoint.value: endpoint for endpoint in Endpoint}
# A chat template may add tokens that the body's own bytes do not show.
TEMPLATE_TOKENS: Final = 256
AUTO: Final = "auto"
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Deciding(Protocol):
    """What the middleware needs of the optimizer; nothing of it waits."""

    @property
    def awake(self) -> bool:
        """Whether requests are to be looked at."""
        ...

    def dispatch(self, request: RequestFacts) -> Dispatch | None:
        """How a request is served; None where it shall pass untouched and unseen."""
        ...

    def finish(self, dispatch: Dispatch, outcome: Callable[[], Outcome]) -> None:
        """The request is over; how it went is worked out later, off the engine's event loop."""
        ...

    def failed(self, where: str, error: BaseException) -> None:
        """Loadwise itself failed; serving goes on."""
        ...


class Inside:
    """ASGI middleware for an engine's server.

    `names` maps the names that the engine serves to members. `auto` is the optimizer's to choose, and so
    is the model of an engine that has no other: then its name leaves nothing open.
    """

    def __init__(
        self,
        app: App,
        *,
        deciding: Deciding,
        clock: Clock,
        names: Callable[[], Mapping[str, str]],
        body_limit_bytes: int,
    ) -> None:
        self._app = app
        self._names = names
        self.deciding = deciding
        self.clock = clock
        self.limit = body_limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection passes."""
        endpoint = _endpoint(scope) if scope["type"] == "http" else None
        if endpoint is None or not self.deciding.awake:
            await self._app(scope, receive, send)
            return
        visit = Visit(self, endpoint, scope, receive, send)
        try:
            await self._app(scope, visit.receive, visit.send)
        except (asyncio.CancelledError, Exception) as error:
            visit.ended(error)
            raise
        visit.ended(None)

    def decide(self, endpoint: Endpoint, body: bytes, exchange: Exchange) -> tuple[Dispatch | None, bytes]:
        """The decision on a request, and its body with what was decided.

        None, and the body as it is, for what the engine will refuse and for models it has beside ours.
        """
        names = self._names()
        try:
            fields = decode(endpoint, body)
            member = AUTO if fields.model == AUTO else names.get(fields.model)
            if member is None:
                return None, body
            alone = len(set(names.values())) == 1
            size = PromptSize(exact=None, bound=len(body) + TEMPLATE_TOKENS)
            facts = read_facts(endpoint, fields, exchange, size, AUTO if alone else member)
        except RequestError:
            # The engine has its own words for what is wrong with a request.
            return None, body
        dispatch = self.deciding.dispatch(facts)
        return dispatch, body if dispatch is None else _changed(body, fields, dispatch, names)


def _endpoint(scope: Scope) -> Endpoint | None:
    if scope["method"] != "POST":
        return None
    path: str = scope["path"]
    return ENDPOINTS.get(path) or ENDPOINTS.get(path.removeprefix(scope.get("root_path", "")))


def _changed(body: bytes, fields: Fields, dispatch: Dispatch, names: Mapping[str, str]) -> bytes:
    """The body with the changed parameters, and with a name that the engine knows for `auto`."""
    changes: dict[str, int | float | str] = dict(dispatch.changes)
    there = present(fields, dispatch.changes)
    if fields.model not in names:
        changes["model"] = next(name for name, member in names.items() if member == dispatch.member_id)
        there = there | {"model"}
    return edited(body, changes, there)
