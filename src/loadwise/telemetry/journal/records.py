"""The journal's records as they lie on disk: typed rows that name what they rest on by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Final

import msgspec

from loadwise.decision.admission import Admission, AdmissionReason, PoolLimit
from loadwise.decision.beliefs import Belief, Health
from loadwise.decision.candidates import Refusal
from loadwise.decision.choices import Choice, Remembered
from loadwise.decision.expected import Latencies
from loadwise.decision.facts import (
    MemberPressure,
    Number,
    Objectives,
    Outcome,
    Policy,
    RequestFacts,
    Route,
    StrategyName,
)
from loadwise.decision.limits import EMPTY, NO_LIMITS, Limits, Minute
from loadwise.decision.rotation import HealthReason
from loadwise.decision.step import Decision, Observation, State
from loadwise.decision.strategy import Strategy
from loadwise.ports import Advice, Enrolled


class Row(msgspec.Struct, frozen=True, array_like=True):
    """A record; its first element on disk is its kind."""


class KeptPolicy(Row, frozen=True, tag="policy"):
    """A policy, once; later rows of the segment name it by `number`."""

    number: int
    value: Policy


class KeptRoute(Row, frozen=True, tag="route"):
    """A route, once."""

    number: int
    value: Route


class KeptStrategy(Row, frozen=True, tag="strategy"):
    """A strategy, once."""

    number: int
    value: Strategy


class KeptBelief(Row, frozen=True, tag="belief"):
    """A belief that no row before it explains."""

    value: Belief


class KeptState(Row, frozen=True, tag="state"):
    """The loop's state, where no step before it left it so."""

    value: State


class LetIn(msgspec.Struct, frozen=True, array_like=True):
    """What a choice's member was found to have room by; the rest stands in the choice's row and route."""

    pressure: MemberPressure
    pool: PoolLimit
    own: PoolLimit
    # Whether the choice's expected latencies counted.
    predicted: bool
    reason: AdmissionReason
    minute: Minute
    tokens: int
    elsewhere: int


class Dispatched(msgspec.Struct, frozen=True, array_like=True):
    """What became of a choice that was sent to an engine; times are monotonic seconds."""

    started_s: float
    replica_id: str
    strategy: StrategyName
    changes: Mapping[str, Number]
    because: Mapping[str, str]
    tuning: str
    config_version: int
    load_score: float | None
    # What chose among several replicas.
    replica_draw: float
    in_flight: Mapping[str, int]
    # What would have been done, where optimisation only advised.
    advised: Advice | None = None
    # None: nobody asked, or an older version did not say.
    let_in: LetIn | None = None
    # The comparisons that feedback on the answer counts in.
    enrolled: Enrolled | None = None
    # It was left alone, also where its member was not free to be chosen.
    untouched: bool = False


class Decided(Row, frozen=True, tag="decided"):
    """A choice with everything it was made from; beliefs are those that the rows before leave."""

    request: RequestFacts
    policy: int
    route: int
    strategy: int | None
    members: tuple[str, ...]
    pressures: tuple[MemberPressure, ...]
    draw: float
    now_s: float
    remembered: Remembered | None
    excluded: frozenset[str]
    control: bool
    choice: Choice | Refusal
    dispatched: Dispatched | None


class KeptOut(Row, frozen=True, tag="kept_out"):
    """A request that the member just chosen could not take, with everything that this was decided from."""

    request_id: str
    n: int
    policy: int
    pressure: MemberPressure
    pool: PoolLimit
    own: PoolLimit
    objectives: Objectives
    expected: Latencies | None
    admission: Admission
    limits: Limits = NO_LIMITS
    minute: Minute = EMPTY
    tokens: int = 0
    now_s: float = 0.0
    elsewhere: int = 0


class TurnedAway(Row, frozen=True, tag="refused"):
    """A request that got no engine; `model` is the name that it asked for, None after an attempt.

    `tenant` is whose it was, None where an older version did not say.
    """

    request_id: str
    status: int
    code: str | None
    retry_after_s: float | None
    now_s: float
    model: str | None = None
    tenant: str | None = None


class Ended(Row, frozen=True, tag="ended"):
    """An outcome; with `learned` it made the member's belief the next one, under `policy`.

    `started_s` is its dispatch's, None where the outcome came without one.
    """

    outcome: Outcome
    policy: int | None
    learned: bool
    started_s: float | None = None
    strategy: StrategyName | None = None
    within: bool | None = None


class PoolSummary(msgspec.Struct, frozen=True, array_like=True):
    """What a step decided for one pool."""

    strategy: Strategy
    changed: bool


class Summary(msgspec.Struct, frozen=True, array_like=True):
    """What a step decided, without the beliefs."""

    worst_pool: str
    pools: Mapping[str, PoolSummary]
    # (model, mode) of the build to make.
    make: tuple[str, str] | None
    health: Mapping[str, tuple[tuple[str, Health, HealthReason], ...]]


class Step(Row, frozen=True, tag="step"):
    """One step of the control loop; `routes` names the members whose beliefs it saw."""

    policy: int
    observation: Observation
    routes: Mapping[str, tuple[str, ...]]
    summary: Summary


class Dropped(Row, frozen=True, tag="dropped"):
    """So many events before the next row were lost: the queue was full, or the disk took none."""

    count: int
    now_s: float


Record = (
    KeptPolicy
    | KeptRoute
    | KeptStrategy
    | KeptBelief
    | KeptState
    | Decided
    | KeptOut
    | TurnedAway
    | Ended
    | Step
    | Dropped
)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        # A read-only view of a mapping, for example.
        return dict(value)
    raise NotImplementedError(f"{type(value).__name__} has no place in a journal")


ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=_plain)


def summary_of(decision: Decision) -> Summary:
    """What is compared when a step is made again."""
    return Summary(
        worst_pool=decision.worst_pool,
        pools={name: PoolSummary(pool.strategy, pool.changed) for name, pool in decision.pools.items()},
        make=decision.builds.make,
        health={
            route: tuple((change.subject, change.health, change.reason) for change in changes)
            for route, changes in decision.health.items()
            if changes
        },
    )


def without_beliefs(observation: Observation) -> Observation:
    """The observation as a row holds it."""
    return replace(observation, beliefs={})


def with_beliefs(
    observation: Observation, routes: Mapping[str, Sequence[str]], beliefs: Mapping[str, Belief]
) -> Observation:
    """The observation as the step saw it; `KeyError` for a belief that is not known."""
    return replace(
        observation,
        beliefs={route: {name: beliefs[name] for name in members} for route, members in routes.items()},
    )


_REQUEST_ID: Final = {
    Decided: attrgetter("request.request_id"),
    Ended: attrgetter("outcome.request_id"),
    TurnedAway: attrgetter("request_id"),
    KeptOut: attrgetter("request_id"),
}


def request_id_of(row: Record) -> str | None:
    """The request that a row is about, None for rows about none."""
    found = _REQUEST_ID.get(type(row))
    return None if found is None else found(row)
