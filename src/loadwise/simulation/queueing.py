"""A device that several members share, as a queueing model: batches slow down as they grow.

A member with n running requests makes one token for each in `step_s + request_s * n` seconds on an idle
device. Members that run at the same time share the device: `interleaved` engines take turns by step, so
that every token waits for a step of each; `fair` engines each get an equal part of the device. A prompt
costs as much as `prompt_tokens / prompt_tokens_per_tick` tokens. Beyond `places` requests wait in line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from typing import Literal, NamedTuple

Sharing = Literal["interleaved", "fair"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberModel:
    """How fast one member is; `fails_between_s` are times within which every request fails at once."""

    member_id: str
    step_s: float
    request_s: float
    places: int = 32
    prompt_tokens_per_tick: float = 64.0
    fails_between_s: tuple[tuple[float, float], ...] = ()

    def fails_at(self, now_s: float) -> bool:
        """Whether it is broken at `now_s`."""
        return any(start <= now_s < end for start, end in self.fails_between_s)


@dataclass(slots=True)
class Job:
    """A request on the device; times are those of the virtual clock, None until they are known."""

    job_id: int
    member_id: str
    prompt_tokens: int
    output_tokens: int
    arrived_s: float
    first_token_s: float | None = None
    finished_s: float | None = None


class Event(NamedTuple):
    """Something that happened on the device."""

    at_s: float
    job: Job
    finished: bool


@dataclass(slots=True)
class _Queue:
    """One member's running and waiting requests, on a clock that counts tokens per request."""

    model: MemberModel
    ticks: float = 0.0
    running: int = 0
    # (tick, job id, whether it ends then, job)
    due: list[tuple[float, int, bool, Job]] = field(default_factory=list)
    waiting: deque[Job] = field(default_factory=deque)


class Device:
    """Members that share a device, driven by `submit` and `advance`; no real time passes."""

    def __init__(self, members: Mapping[str, MemberModel], sharing: Sharing = "interleaved") -> None:
        self._queues = {name: _Queue(model) for name, model in members.items()}
        self._sharing = sharing
        # Running members and their seconds per token as things stand; None when that has changed.
        self._speeds: list[tuple[_Queue, float]] | None = None
        self.now_s = 0.0

    def in_flight(self, member_id: str) -> int:
        """Requests of a member, running and waiting."""
        queue = self._queues[member_id]
        return queue.running + len(queue.waiting)

    def waiting(self, member_id: str) -> int:
        """Requests of a member that wait for a place."""
        return len(self._queues[member_id].waiting)

    def submit(self, job: Job) -> None:
        """The job runs or waits from now on; `advance` must have reached its arrival."""
        queue = self._queues[job.member_id]
        if queue.running < queue.model.places:
            self._begin(queue, job)
        else:
            queue.waiting.append(job)

    def advance(self, until_s: float) -> Iterator[Event]:
        """Moves the clock to `until_s`, yielding first tokens and ends in order of time."""
        while True:
            at_s, queue = self._next()
            if queue is None or at_s > until_s:
                self._pass(max(0.0, until_s - self.now_s))
                self.now_s = max(self.now_s, until_s)
                return
            self._pass(at_s - self.now_s)
            self.now_s = at_s
            yield self._happen(queue)

    def _begin(self, queue: _Queue, job: Job) -> None:
        queue.running += 1
        self._speeds = None
        first = queue.ticks + 1.0 + job.prompt_tokens / queue.model.prompt_tokens_per_tick
        heappush(queue.due, (first, job.job_id, False, job))

    def _happen(self, queue: _Queue) -> Event:
        tick, _, ends, job = heappop(queue.due)
        queue.ticks = max(queue.ticks, tick)
        if not ends:
            job.first_token_s = self.now_s
            heappush(queue.due, (tick + max(0, job.output_tokens - 1), job.job_id, True, job))
            return Event(self.now_s, job, False)
        job.finished_s = self.now_s
        queue.running -= 1
        self._speeds = None
        if queue.waiting:
            self._begin(queue, queue.waiting.popleft())
        return Event(self.now_s, job, True)

    def _running(self) -> list[tuple[_Queue, float]]:
        """Members that run, with their seconds per token."""
        if self._speeds is None:
            active = [queue for queue in self._queues.values() if queue.running]
            alone = [queue.model.step_s + queue.model.request_s * queue.running for queue in active]
            total = sum(alone)
            fair = self._sharing == "fair"
            self._speeds = [
                (queue, own * len(active) if fair else total)
                for queue, own in zip(active, alone, strict=True)
            ]
        return self._speeds

    def _next(self) -> tuple[float, _Queue | None]:
        soonest_s, soonest = inf, None
        for queue, seconds in self._running():
            at_s = self.now_s + max(0.0, queue.due[0][0] - queue.ticks) * seconds
            if at_s < soonest_s:
                soonest_s, soonest = at_s, queue
        return soonest_s, soonest

    def _pass(self, elapsed_s: float) -> None:
        if elapsed_s > 0.0:
            for queue, seconds in self._running():
                queue.ticks += elapsed_s / seconds
