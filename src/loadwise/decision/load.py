"""1 measure: readings become load metrics, and metrics become one score in 0..1.

The score is a weighted mean over the components that could be read, renormalised. Each component
grows with its reading from 0 (idle) to 1 (the saturation point stated in `SATURATION`):

- queue: waiting requests against a quarter of the places; 8 waiting where places are unknown. Answers
  that begin far later than the objective wait somewhere, whatever the engine says of its queue.
- in_flight: running and waiting requests against the places of the fullest replica.
- kv_cache: blocks in use. What waits shows that places are taken, so neither this nor work in flight
  counts below the queue.
- time_to_first_token: the recent average against the objective.
- cpu, gpu, error_rate: the reading; memory only above 80 %, since resident models are no load. Failures
  alone show little load at most: a server that refuses everything may be idle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from math import isfinite
from types import MappingProxyType
from typing import Final

from loadwise.decision.facts import (
    EngineReading,
    HostReading,
    LoadWeights,
    Number,
    Objectives,
    ServiceReading,
)

# Where each component reaches 1, in its own unit.
SATURATION: Final[Mapping[str, float]] = MappingProxyType(
    {
        "queue": 0.25,  # waiting requests per place
        "queue_requests": 8.0,  # waiting requests where places are unknown
        "queue_first_token": 4.0,  # time to first token in objectives
        "kv_cache": 0.95,  # fraction of the blocks
        "in_flight": 1.0,  # requests per place
        "time_to_first_token": 1.0,  # objectives
        "cpu": 100.0,  # percent
        "memory_from": 80.0,  # percent; nothing below
        "memory": 98.0,  # percent
        "gpu": 100.0,  # percent
        "error_rate": 0.25,  # fraction
    }
)


# What failures count for at most where nothing else can be read.
FAILURES_ALONE: Final = 0.2


@dataclass(frozen=True, slots=True)
class ServerLoadMetrics:
    """What was measured of a server; None is "could not be read", and NaN, infinity and negatives are that.

    The origin's eight fields come first and in its order; ours follow, by keyword.
    """

    cpu_usage_percent: float | None = None
    memory_usage_percent: float | None = None
    gpu_utilization: float | None = None
    active_requests: int | None = None
    queue_depth: int | None = None
    throughput_tokens_per_sec: float | None = None
    avg_latency_ms: float | None = None
    error_rate: float | None = None
    _: KW_ONLY
    kv_cache_usage_fraction: float | None = None
    capacity_requests: int | None = None
    # Waiting and all requests against the places of the replica that is fullest.
    queue_fraction: float | None = None
    in_flight_fraction: float | None = None
    time_to_first_token_ms: float | None = None
    time_per_output_token_ms: float | None = None
    prompt_tokens_per_sec: float | None = None
    throughput_rps: float | None = None

    def __post_init__(self) -> None:
        for name in FIELDS:
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value >= 0):
                object.__setattr__(self, name, None)

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the fields that could not be read, in field order."""
        return tuple(name for name in FIELDS if getattr(self, name) is None)

    @property
    def overall_load_score(self) -> float | None:
        """The load score (0..1) with default weights and objectives; None when nothing of it was read."""
        return score(self, LoadWeights()).value


FIELDS: Final[tuple[str, ...]] = tuple(field.name for field in fields(ServerLoadMetrics))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadScore:
    """A load score in 0..1 (None: nothing could be read), its components, and those that are absent."""

    value: float | None
    parts: Mapping[str, float]
    absent: tuple[str, ...]


def measure(
    engines: Sequence[EngineReading],
    host: HostReading | None,
    service: ServiceReading | None,
    now_s: float,
    stale_after_s: float,
) -> ServerLoadMetrics:
    """One pool's metrics from the readings that are not older than `stale_after_s`."""
    fresh = [reading for reading in engines if now_s - reading.read_s <= stale_after_s]
    box = host if host is not None and now_s - host.read_s <= stale_after_s else HostReading(read_s=now_s)
    seen = service if service is not None and now_s - service.read_s <= stale_after_s else None
    own = seen or ServiceReading(read_s=now_s)
    running = _total(reading.running_requests for reading in fresh)
    return ServerLoadMetrics(
        box.cpu_usage_percent,
        box.memory_usage_percent,
        box.gpu_utilization_percent,
        _whole(own.active_requests if running is None else running),
        _whole(_total(reading.waiting_requests for reading in fresh)),
        _total(reading.output_tokens_per_s for reading in fresh),
        own.avg_latency_ms,
        own.error_fraction,
        kv_cache_usage_fraction=_worst(reading.kv_cache_usage_fraction for reading in fresh),
        capacity_requests=_whole(_total(reading.capacity_requests for reading in fresh)),
        queue_fraction=_worst(_per_place(r.waiting_requests, r.capacity_requests) for r in fresh),
        in_flight_fraction=_worst(_places_taken(reading) for reading in fresh),
        time_to_first_token_ms=_milli(
            _worst([own.time_to_first_token_s, *(reading.time_to_first_token_s for reading in fresh)])
        ),
        time_per_output_token_ms=_milli(_worst(reading.time_per_output_token_s for reading in fresh)),
        prompt_tokens_per_sec=_total(reading.prompt_tokens_per_s for reading in fresh),
        throughput_rps=own.requests_per_s,
    )


def score(
    metrics: ServerLoadMetrics, weights: LoadWeights, objectives: Objectives | None = None
) -> LoadScore:
    """The weighted mean of the components that are present, renormalised; never outside 0..1."""
    parts: dict[str, float] = {}
    for name, component in COMPONENTS.items():
        value = component(metrics, objectives or Objectives())
        if value is not None:
            parts[name] = value
    for name in ("kv_cache", "in_flight"):
        if name in parts and "queue" in parts:
            parts[name] = max(parts[name], parts["queue"])
    if parts.keys() == {"error_rate"}:
        parts["error_rate"] = min(parts["error_rate"], FAILURES_ALONE)
    total = sum(getattr(weights, name) for name in parts)
    mean = sum(getattr(weights, name) * part for name, part in parts.items())
    return LoadScore(
        value=min(1.0, max(0.0, mean / total)) if total > 0 else None,
        parts=parts,
        absent=tuple(name for name in COMPONENTS if name not in parts),
    )


def _queue(metrics: ServerLoadMetrics, objectives: Objectives) -> float | None:
    if metrics.queue_depth is None:
        return None
    fraction = metrics.queue_fraction
    if fraction is None:
        fraction = _per_place(metrics.queue_depth, metrics.capacity_requests)
    if fraction is None:
        part = metrics.queue_depth / SATURATION["queue_requests"]
    else:
        part = fraction / SATURATION["queue"]
    late = _in_objectives(metrics, objectives)
    hidden = 0.0 if late is None else (late - 1.0) / (SATURATION["queue_first_token"] - 1.0)
    return min(1.0, max(part, hidden))


def _in_flight(metrics: ServerLoadMetrics, _: Objectives) -> float | None:
    fraction = metrics.in_flight_fraction
    if fraction is None:
        fraction = _per_place(metrics.active_requests, metrics.capacity_requests)
    return None if fraction is None else min(1.0, fraction / SATURATION["in_flight"])


def _time_to_first_token(metrics: ServerLoadMetrics, objectives: Objectives) -> float | None:
    late = _in_objectives(metrics, objectives)
    return None if late is None else min(1.0, late / SATURATION["time_to_first_token"])


def _in_objectives(metrics: ServerLoadMetrics, objectives: Objectives) -> float | None:
    if metrics.time_to_first_token_ms is None:
        return None
    return metrics.time_to_first_token_ms / (objectives.time_to_first_token_s * 1000.0)


def _memory(metrics: ServerLoadMetrics, _: Objectives) -> float | None:
    if metrics.memory_usage_percent is None:
        return None
    start = SATURATION["memory_from"]
    return min(1.0, max(0.0, (metrics.memory_usage_percent - start) / (SATURATION["memory"] - start)))


def _linear(field: str, component: str) -> Callable[[ServerLoadMetrics, Objectives], float | None]:
    def part(metrics: ServerLoadMetrics, _: Objectives) -> float | None:
        value: float | None = getattr(metrics, field)
        return None if value is None else min(1.0, value / SATURATION[component])

    return part


COMPONENTS: Final[Mapping[str, Callable[[ServerLoadMetrics, Objectives], float | None]]] = MappingProxyType(
    {
        "queue": _queue,
        "kv_cache": _linear("kv_cache_usage_fraction", "kv_cache"),
        "in_flight": _in_flight,
        "time_to_first_token": _time_to_first_token,
        "cpu": _linear("cpu_usage_percent", "cpu"),
        "memory": _memory,
        "gpu": _linear("gpu_utilization", "gpu"),
        "error_rate": _linear("error_rate", "error_rate"),
    }
)


def _usable(values: Iterable[Number | None]) -> list[Number]:
    return [value for value in values if value is not None and isfinite(value) and value >= 0]


def _total(values: Iterable[Number | None]) -> Number | None:
    present = _usable(values)
    return sum(present) if present else None


def _worst(values: Iterable[Number | None]) -> float | None:
    return max(_usable(values), default=None)


def _whole(value: Number | None) -> int | None:
    return None if value is None or not isfinite(value) else int(value)


def _milli(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000.0


def _per_place(requests: Number | None, capacity: Number | None) -> float | None:
    usable = _usable((requests, capacity))
    return usable[0] / usable[1] if len(usable) == 2 and usable[1] > 0 else None


def _places_taken(reading: EngineReading) -> float | None:
    return _per_place(_total((reading.running_requests, reading.waiting_requests)), reading.capacity_requests)
