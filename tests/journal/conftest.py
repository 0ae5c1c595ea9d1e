"""A whole optimizer whose decisions are journaled, over fake engines and a fake clock."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from loadwise.decision.facts import (
    Capabilities,
    Ending,
    Feature,
    HostReading,
    Member,
    Outcome,
    Principal,
    Replica,
    RequestFacts,
)
from loadwise.decision.parameters import THINKING
from loadwise.errors import RequestError
from loadwise.optimizer import MemberParts, Optimization, build
from loadwise.ports import Dispatch
from loadwise.settings import OptimizationConfig
from loadwise.telemetry.journal.journal import Journal, Limits
from loadwise.telemetry.journal.reader import Reader
from loadwise.telemetry.journal.replay import Replayed, replay
from loadwise.testing import FakeClock, FakeEngine

QUALITIES: dict[str, float | None] = {"fast": 0.4, "balanced": 0.7, "accurate": 1.0}
# Seconds per output token by member: the better, the slower.
SPEEDS = {"fast": 0.004, "balanced": 0.012, "accurate": 0.025}


class FakeHost:
    """A machine as busy as the test says."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.cpu = 10.0

    def read(self) -> HostReading:
        return HostReading(
            read_s=self._clock.monotonic_s(), cpu_usage_percent=self.cpu, memory_usage_percent=40.0
        )


@dataclass
class House:
    """An optimizer with a journal, and what a test does with it."""

    made: Optimization
    clock: FakeClock
    folder: Path
    limits: Limits
    host: FakeHost
    open: list[Dispatch] = field(default_factory=list)
    random: Random = field(default_factory=lambda: Random(5))
    sent: int = 0
    deaths: int = 0

    @property
    def chronicle(self) -> Any:
        return self.made.optimizer.chronicle

    @property
    def journal(self) -> Journal:
        found: Journal = self.chronicle.journal
        return found

    def request(self, **facts: object) -> RequestFacts:
        self.sent += 1
        values = {
            "request_id": f"r{self.sent}", "prompt_tokens": 20, "prompt_tokens_bound": 20, **facts,
        }  # fmt: skip
        return RequestFacts(**values)  # type: ignore[arg-type]

    def dispatch(self, **facts: object) -> Dispatch:
        exclude = facts.pop("exclude", frozenset())
        found = self.made.director.dispatch(self.request(**facts), exclude)  # type: ignore[arg-type]
        self.open.append(found)
        return found

    def end(self, dispatch: Dispatch, ending: Ending = Ending.SUCCEEDED, **facts: object) -> None:
        self.open.remove(dispatch)
        each_s = SPEEDS.get(dispatch.member_id, 0.01) * (1 + dispatch.concurrency)
        values: dict[str, object] = {
            "request_id": dispatch.request.request_id, "member_id": dispatch.member_id,
            "replica_id": dispatch.replica_id, "ending": ending, "finished_s": self.clock.monotonic_s(),
            "route": dispatch.request.model, "total_s": 0.05 + 20 * each_s, "time_to_first_token_s": 0.05,
            "prompt_tokens": 20, "output_tokens": self.random.randrange(1, 200), "finish_reason": "stop",
            "concurrency": dispatch.concurrency, **facts,
        }  # fmt: skip
        self.made.director.finish(dispatch, Outcome(**values))  # type: ignore[arg-type]

    def answer(self, **facts: object) -> Dispatch:
        """One request from beginning to end, within its objectives."""
        dispatch = self.dispatch(**facts)
        self.clock.advance(0.2)
        self.end(dispatch, total_s=0.1)
        return dispatch

    async def busy(self, requests: int) -> None:
        """Requests of every kind arrive, end in every way, and the loop turns meanwhile."""
        random = self.random
        for number in range(requests):
            self.clock.advance(random.expovariate(20.0))
            try:
                self.dispatch(**_facts(random, number))
            except RequestError as error:
                assert error.status in {400, 429, 503}  # noqa: PT017 - refused requests are journaled too
            while self.open and random.random() < 0.6:
                self.end(random.choice(self.open), random.choices(list(Ending), (20, 2, 1))[0])
            if number % 25 == 0:
                self.host.cpu = random.uniform(0.0, 100.0)
                await self.made.optimizer.cycle.tune()

    async def replayed(self) -> Replayed:
        self.journal.flush()
        with Reader(self.folder) as reader:
            return replay(reader.batches())

    def left_behind(self) -> Path:
        """The state folder as a kill at this moment leaves it to the next start."""
        self.journal.flush()
        self.deaths += 1
        state = self.folder.parent
        return Path(shutil.copytree(state, state.with_name(f"{state.name}-{self.deaths}")))

    async def close(self) -> None:
        await self.made.optimizer.close()


def _facts(random: Random, number: int) -> dict[str, object]:
    conversation = random.choice([None, None, f"c{number % 7}"])
    return {
        "model": random.choices(["auto", "fast", "accurate"], (8, 1, 1))[0],
        "prompt_tokens": random.choice([None, 5, 200, 5000])
        if number % 40 == 0
        else random.randrange(1, 300),
        "explicit": random.choice([{}, {"max_tokens": 50}, {"temperature": 0.2, "seed": 2**70}]),
        "features": random.choice([frozenset(), frozenset({Feature.TOOLS})]),
        "conversation_id": conversation,
        "continues": conversation is not None and random.random() < 0.7,
        "off": random.random() < 0.05,
        "n": random.choice([1, 1, 1, 3]),
        "quality_preference": random.choice([None, None, 0.0, 1.0]),
        "principal": Principal(tenant=random.choice(["blue", "red"]), ceilings={"max_tokens": 300}),
    }


def member_parts(name: str, quality: float | None, clock: FakeClock, replicas: int) -> MemberParts:
    ids = [f"{name}/{number}" for number in range(replicas)]
    member = Member(
        member_id=name,
        replicas=tuple(Replica(replica_id=each, pool_id="local") for each in ids),
        quality=quality,
        capabilities=Capabilities(features=frozenset(Feature) - THINKING, context_tokens=1024, embedded=True),
    )
    engines = {each: FakeEngine(model_id=name, capacity=4, queue_limit=8, clock=clock) for each in ids}
    return MemberParts(member=member, engines=engines)


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Makes houses; `await make(...)` again over the same state folder is a restart."""
    houses: list[House] = []

    async def made(
        *,
        qualities: dict[str, float | None] | None = None,
        replicas: int = 1,
        limits: Limits | None = None,
        clock: FakeClock | None = None,
        folder: Path = tmp_path,
        **config: object,
    ) -> House:
        clock = clock or FakeClock()
        host = FakeHost(clock)
        values: dict[str, object] = {
            "ensemble_strategy": "weighted_voting",
            "experiment": {"block_share": 0.1, "block_sec": 10.0},
            **config,
        }
        optimization = build(
            OptimizationConfig(**values),  # type: ignore[arg-type]
            [member_parts(name, q, clock, replicas) for name, q in (qualities or QUALITIES).items()],
            host=host,
            sinks=[],
            state_dir=folder,
            random=Random(7),
            clock=clock,
        )
        limits = limits or Limits()
        house = House(optimization, clock, folder / "journal", limits, host)
        await house.chronicle.open(Journal(house.folder, clock, limits))
        optimization.director.running = True
        await optimization.optimizer.cycle.tune()
        houses.append(house)
        return house

    yield made
    for house in houses:
        await house.close()
