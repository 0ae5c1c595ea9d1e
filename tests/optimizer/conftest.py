"""A whole optimizer over fake engines, a fake clock and a host whose figures a test sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from loadwise.decision.facts import (
    Capabilities,
    Ending,
    Feature,
    HostReading,
    Member,
    Outcome,
    Replica,
    RequestFacts,
    StrategyName,
)
from loadwise.decision.parameters import THINKING
from loadwise.errors import UnknownNameError
from loadwise.optimizer import MemberParts, Optimization, build
from loadwise.ports import Alert, Dispatch
from loadwise.settings import OptimizationConfig, RouteSettings
from loadwise.testing import FakeClock, FakeEngine

NO_EXPERIMENT = {"block_share": 0.0, "conversation_share": 0.0}
QUALITIES = {"fast": 0.3, "balanced": 0.6, "accurate": 1.0}


class FakeHost:
    """A machine as busy as the test says; `error` is raised instead when set."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.cpu: float | None = 10.0
        self.error: Exception | None = None

    def read(self) -> HostReading:
        if self.error is not None:
            raise self.error
        return HostReading(
            read_s=self._clock.monotonic_s(), cpu_usage_percent=self.cpu, memory_usage_percent=40.0
        )


class FakeCatalogue:
    """Opens what it lists."""

    def __init__(self, clock: FakeClock, listed: Sequence[str] = ("spare", "other")) -> None:
        self._clock = clock
        self.listed = listed
        self.opened: list[str] = []

    async def names(self) -> Sequence[str]:
        return self.listed

    async def open(self, model_id: str) -> MemberParts:
        if model_id not in self.listed:
            raise UnknownNameError(model_id)
        self.opened.append(model_id)
        return member_parts(model_id, 0.5, FakeEngine(model_id=model_id, clock=self._clock))


class Heard:
    """An alert sink that remembers."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []

    def deliver(self, alert: Alert) -> None:
        self.alerts.append(alert)


def member_parts(
    name: str, quality: float | None, *engines: FakeEngine, standby: bool = False, embedded: bool = True
) -> MemberParts:
    replicas = {f"{name}/{number}": engine for number, engine in enumerate(engines)}
    member = Member(
        member_id=name,
        replicas=tuple(Replica(replica_id=replica, pool_id="local") for replica in replicas),
        quality=quality,
        capabilities=Capabilities(
            features=frozenset(Feature) - THINKING,
            context_tokens=1024,
            tokenizer_fingerprint="words",
            embedded=embedded,
        ),
    )
    for engine in engines:
        engine.capabilities = member.capabilities
    return MemberParts(member=member, engines=replicas, standby=standby)


@dataclass
class Server:
    """Everything that a test touches."""

    made: Optimization
    clock: FakeClock
    host: FakeHost
    engines: dict[str, FakeEngine]
    heard: Heard
    catalogue: FakeCatalogue
    open: list[Dispatch] = field(default_factory=list)

    @property
    def optimizer(self):  # type: ignore[no-untyped-def]
        return self.made.optimizer

    @property
    def director(self):  # type: ignore[no-untyped-def]
        return self.made.director

    def request(self, number: int = 0, **facts: object) -> RequestFacts:
        values: dict[str, object] = {
            "request_id": f"r{number}", "prompt_tokens": 20, "prompt_tokens_bound": 20, **facts,
        }  # fmt: skip
        return RequestFacts(**values)  # type: ignore[arg-type]

    def dispatch(self, number: int = 0, **facts: object) -> Dispatch:
        return self.director.dispatch(self.request(number, **facts))

    def end(self, dispatch: Dispatch, ending: Ending = Ending.SUCCEEDED, **facts: object) -> None:
        values: dict[str, object] = {
            "request_id": dispatch.request.request_id, "member_id": dispatch.member_id,
            "replica_id": dispatch.replica_id, "ending": ending, "finished_s": self.clock.monotonic_s(),
            "route": dispatch.request.model, "total_s": 0.3, "time_to_first_token_s": 0.1,
            "prompt_tokens": 20, "output_tokens": 20, "finish_reason": "stop",
            "concurrency": dispatch.concurrency, **facts,
        }  # fmt: skip
        self.director.finish(dispatch, Outcome(**values))  # type: ignore[arg-type]

    async def turn(self, seconds: float = 30.0) -> StrategyName:
        """Time passes and the loop turns once."""
        self.clock.advance(seconds)
        await self.optimizer.cycle.tune()
        return self.optimizer.parameter_tuner.get_current_strategy().name


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Server]:
    """Makes a server; `config` are settings, `standby` and `replicas` shape its members."""

    def made(
        *,
        qualities: dict[str, float | None] | None = None,
        replicas: int = 1,
        capacity: int = 4,
        queue_limit: int = 8,
        routes: dict[str, RouteSettings] | None = None,
        standby: Sequence[str] = (),
        embedded: bool = True,
        state: bool = False,
        reports: bool = True,
        **config: object,
    ) -> Server:
        clock = FakeClock()
        host, heard, catalogue = FakeHost(clock), Heard(), FakeCatalogue(clock)
        engines: dict[str, FakeEngine] = {}
        members = []
        for name, quality in (qualities or QUALITIES).items():
            own = [
                FakeEngine(model_id=name, capacity=capacity, queue_limit=queue_limit, clock=clock)
                for _ in range(replicas)
            ]
            engines |= {f"{name}/{number}": engine for number, engine in enumerate(own)}
            members.append(member_parts(name, quality, *own, standby=name in standby, embedded=embedded))
        settings: dict[str, object] = {"ensemble_strategy": "adaptive", "experiment": NO_EXPERIMENT, **config}
        optimization = build(
            OptimizationConfig(**settings),  # type: ignore[arg-type]
            members,
            routes=routes,
            catalogue=catalogue,
            host=host,
            sinks=[heard],
            state_dir=tmp_path / "state" if state else None,
            report_dir=tmp_path / "reports" if reports else None,
            random=Random(7),
            clock=clock,
        )
        return Server(optimization, clock, host, engines, heard, catalogue)

    return made
