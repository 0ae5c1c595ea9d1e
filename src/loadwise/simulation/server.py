"""A whole optimizer over the queueing model in virtual time: director, loop, alert rules, all as built.

What `simulation.loop` leaves out is here as in production: what is remembered between requests, what is
counted, what the watch sees and tells. Only the clock, the engines and the host are models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from random import Random
from typing import Final

from loadwise.decision.facts import (
    Capabilities,
    Ending,
    EngineReading,
    Feature,
    HostReading,
    Member,
    Outcome,
    Replica,
    RequestFacts,
)
from loadwise.errors import RequestError
from loadwise.optimizer import MemberParts, build
from loadwise.ports import Alert, Answer, Call, Dispatch
from loadwise.settings import OptimizationConfig
from loadwise.simulation.loop import FAILURE_S
from loadwise.simulation.queueing import Device, Job, MemberModel, Sharing
from loadwise.simulation.workloads import Arrival

POOL: Final = "local"
# While somebody asks the loop looks as often as in production; while nobody does, this seldom.
LOOK_S: Final = 1.0
IDLE_LOOK_S: Final = 300.0
CAPABILITIES: Final = Capabilities(features=frozenset(Feature), context_tokens=4096, embedded=True)


class DeviceEngine:
    """One member of a device as an engine that is read; its requests go to the device."""

    capabilities = CAPABILITIES

    def __init__(self, model: MemberModel, device: Device, queue_limit: int) -> None:
        self._model, self._device, self._queue_limit = model, device, queue_limit

    async def answer(self, call: Call) -> Answer:
        """Nobody asks: requests go to the device."""
        raise NotImplementedError

    async def count_tokens(self, call: Call) -> int | None:
        """Nobody asks."""
        return None

    async def observe(self) -> EngineReading:
        """What runs and waits now."""
        name, device = self._model.member_id, self._device
        return EngineReading(
            replica_id=name,
            read_s=device.now_s,
            running_requests=device.in_flight(name) - device.waiting(name),
            waiting_requests=device.waiting(name),
            capacity_requests=self._model.places,
            queue_capacity_requests=self._queue_limit,
        )

    async def start(self) -> None:
        """It is there."""

    async def close(self) -> None:
        """It holds nothing."""


class _Time:
    """The device's, as clock and as a host of which nothing else is known."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def monotonic_s(self) -> float:
        return self._device.now_s

    def wall_s(self) -> float:
        return self._device.now_s

    def read(self) -> HostReading:
        return HostReading(read_s=self._device.now_s)


class _Told(list[Alert]):
    """A sink that remembers."""

    def deliver(self, alert: Alert) -> None:
        self.append(alert)


class SimulatedServer:
    """Members on one device under a whole optimizer; `alerts` are those that began and ended, in order."""

    def __init__(
        self,
        models: Mapping[str, MemberModel],
        qualities: Mapping[str, float],
        config: OptimizationConfig,
        *,
        sharing: Sharing = "interleaved",
        queue_limit: int = 128,
        seed: int = 0,
    ) -> None:
        self._models = dict(models)
        self._device = Device(self._models, sharing)
        time, told = _Time(self._device), _Told()
        self.alerts: list[Alert] = told
        members = [
            _parts(DeviceEngine(model, self._device, queue_limit), name, qualities[name])
            for name, model in self._models.items()
        ]
        made = build(config, members, host=time, sinks=[told], random=Random(seed), clock=time)
        self.optimizer, self._director = made.optimizer, made.director
        self._director.running = True
        self.requests = 0
        self._flying: dict[int, Dispatch] = {}
        self._next_look_s = 0.0

    async def serve(self, workload: Iterable[Arrival]) -> None:
        """The requests of a workload, in order of time, have come; those that ended were learned from."""
        for arrival in workload:
            await self.until(arrival.t_s)
            self._arrive(arrival)

    async def until(self, t_s: float) -> None:
        """What happens up to `t_s` has happened, the loop's looks and the alert rules' among it."""
        while self._next_look_s <= t_s:
            self._advance(self._next_look_s)
            await self.optimizer.cycle.probe()
            self.optimizer.watch.evaluate()
            left_s = t_s - self._next_look_s
            self._next_look_s += LOOK_S if self._flying else max(LOOK_S, min(IDLE_LOOK_S, left_s))
        self._advance(t_s)

    def _arrive(self, arrival: Arrival) -> None:
        self.requests += 1
        tokens = arrival.input_tokens
        request = RequestFacts(
            request_id=str(self.requests), model="auto", prompt_tokens=tokens, prompt_tokens_bound=tokens
        )
        try:
            dispatch = self._director.dispatch(request)
        except RequestError:
            return
        job = Job(self.requests, dispatch.member_id, tokens, arrival.output_tokens, arrival.t_s)
        if self._models[dispatch.member_id].fails_at(arrival.t_s):
            self._director.finish(dispatch, _failed(dispatch, arrival.t_s))
            return
        self._flying[job.job_id] = dispatch
        self._device.submit(job)

    def _advance(self, t_s: float) -> None:
        for event in self._device.advance(t_s):
            if event.finished:
                dispatch = self._flying.pop(event.job.job_id)
                self._director.finish(dispatch, _succeeded(dispatch, event.job))


def _succeeded(dispatch: Dispatch, job: Job) -> Outcome:
    finished_s, first_s = job.finished_s or 0.0, job.first_token_s or 0.0
    return replace(
        _ended(dispatch, Ending.SUCCEEDED, finished_s),
        total_s=finished_s - job.arrived_s,
        time_to_first_token_s=first_s - job.arrived_s,
        prompt_tokens=job.prompt_tokens,
        output_tokens=job.output_tokens,
        finish_reason="stop",
    )


def _failed(dispatch: Dispatch, now_s: float) -> Outcome:
    return replace(_ended(dispatch, Ending.FAILED, now_s), total_s=FAILURE_S, status=500)


def _ended(dispatch: Dispatch, ending: Ending, finished_s: float) -> Outcome:
    return Outcome(
        request_id=dispatch.request.request_id,
        member_id=dispatch.member_id,
        replica_id=dispatch.replica_id,
        route=dispatch.request.model,
        ending=ending,
        finished_s=finished_s,
        concurrency=dispatch.concurrency,
    )


def _parts(engine: DeviceEngine, name: str, quality: float) -> MemberParts:
    replica = Replica(replica_id=name, pool_id=POOL)
    member = Member(member_id=name, replicas=(replica,), quality=quality, capabilities=CAPABILITIES)
    return MemberParts(member=member, engines={name: engine})
