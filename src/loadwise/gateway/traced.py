"""Tracing wrapped around the relay and the director, so that neither knows of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from loadwise.decision.facts import ANONYMOUS, Outcome, Principal, RequestFacts
from loadwise.gateway.asgi import Exchange
from loadwise.gateway.fields import Fields
from loadwise.gateway.relay import Relay
from loadwise.ports import Call, Director, Dispatch, ModelCard, PromptSize


class Tracing(Protocol):
    """Spans around requests; the current one is that of the task."""

    def request(self, facts: RequestFacts, call: Call) -> AbstractContextManager[Call]:
        """A span around one request, and the call that hands it on."""
        ...

    def decided(self, dispatch: Dispatch, *, again: bool) -> None:
        """The span says what was decided."""
        ...

    def ended(self, outcome: Outcome) -> None:
        """The span says how the attempt went."""
        ...


class TracedRelay(Relay):
    """Serves every request inside a span."""

    def __init__(self, relay: Relay, tracing: Tracing) -> None:
        self._relay = relay
        self._tracing = tracing

    async def serve(self, exchange: Exchange, facts: RequestFacts, call: Call, fields: Fields) -> None:
        """The request is answered; its engine continues the trace."""
        with self._tracing.request(facts, call) as traced:
            await self._relay.serve(exchange, facts, traced, fields)


class TracedDirector:
    """A director whose decisions and outcomes are told to the request's span."""

    def __init__(self, director: Director, tracing: Tracing) -> None:
        self._director = director
        self._tracing = tracing

    def models(self, principal: Principal = ANONYMOUS) -> Sequence[ModelCard]:
        """Those that the principal may ask: routes first, then members."""
        return self._director.models(principal)

    async def measure(self, model: str, call: Call) -> PromptSize:
        """The prompt's length for the members that `model` names."""
        return await self._director.measure(model, call)

    def dispatch(self, request: RequestFacts, exclude: frozenset[str] = frozenset()) -> Dispatch:
        """Decides, and says so in the span."""
        dispatch = self._director.dispatch(request, exclude)
        self._tracing.decided(dispatch, again=bool(exclude))
        return dispatch

    def finish(self, dispatch: Dispatch, outcome: Outcome) -> None:
        """Records how it ended, in the span too."""
        self._tracing.ended(outcome)
        self._director.finish(dispatch, outcome)

    def refused(self, request_id: str, model: str, status: int) -> None:
        """Counts a request that failed before it was decided."""
        self._director.refused(request_id, model, status)
