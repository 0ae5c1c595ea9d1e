"""A simulated engine over real sockets: places, a queue, speeds that fall with load, and faults on demand.

`POST /faults` with `{"fault": "errors"}` (or `slow`, `none`) sets what goes wrong. Demonstrations and
tests run it in place of an engine; the server of `loadwise serve` has no such route.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from enum import StrEnum

from loadwise.testing.upstream import Behaviour, Received, StubUpstream, _Connection

# How much longer everything takes while it is slow.
SLOWED = 8.0


class Fault(StrEnum):
    """What goes wrong."""

    NONE = "none"
    ERRORS = "errors"
    SLOW = "slow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast a simulated engine is: seconds when idle, and how they grow while its places fill."""

    places: int = 8
    first_token_s: float = 0.05
    per_token_s: float = 0.01
    # Times slower with every place taken.
    full: float = 2.0


class SimulatedEngine(StubUpstream):
    """A stub whose answers wait for a place and take as long as its load says."""

    def __init__(self, model: str, speed: Speed, *, tokens: int = 24) -> None:
        listed = {"id": model, "object": "model", "max_model_len": 4096}
        super().__init__(Behaviour(tokens=tokens, models=(listed,)), keep=1)
        self.speed = speed
        self.fault = Fault.NONE
        self.waiting = 0
        self.running = 0
        self._places = asyncio.Semaphore(speed.places)
        self._tokens = 0

    async def _answer(self, request: Received, connection: _Connection) -> None:
        if request.path == "/faults" and request.method == "POST":
            self._set_fault(request, connection)
        elif request.path == "/metrics":
            connection.reply(200, self._metrics().encode(), "text/plain")
        else:
            await super()._answer(request, connection)

    def _set_fault(self, request: Received, connection: _Connection) -> None:
        try:
            self.fault = Fault(json.loads(request.body)["fault"])
        except (ValueError, KeyError, TypeError):
            known = ", ".join(Fault)
            connection.reply(400, json.dumps({"error": f"fault must be one of {known}."}).encode())
            return
        connection.reply(200, json.dumps({"fault": self.fault}).encode())

    async def _generate(self, request: Received, connection: _Connection) -> None:
        if self.fault is Fault.ERRORS:
            connection.reply(500, b'{"error":{"message":"injected","type":"server_error"}}')
            return
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            self._set_pace()
            await super()._generate(request, connection)
            self._tokens += self.behaviour.tokens
        finally:
            self.running -= 1
            self._places.release()

    def _set_pace(self) -> None:
        """The pace of all answers in progress follows how many there are."""
        speed = self.speed
        factor = 1.0 + (speed.full - 1.0) * (self.running - 1) / max(1, speed.places - 1)
        if self.fault is Fault.SLOW:
            factor *= SLOWED
        self.behaviour.first_delay_s = speed.first_token_s * factor
        self.behaviour.token_delay_s = speed.per_token_s * factor

    def _metrics(self) -> str:
        usage = min(1.0, self.running / self.speed.places)
        return (
            f"vllm:num_requests_running {self.running}\n"
            f"vllm:num_requests_waiting {self.waiting}\n"
            f"vllm:kv_cache_usage_perc {usage}\n"
            f"vllm:generation_tokens_total {self._tokens}\n"
        )
