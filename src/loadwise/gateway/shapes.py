"""The documented answers of the control plane; more keys may be there than are named here."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """An answer whose named keys are always there."""

    model_config = ConfigDict(extra="allow")


class ErrorDetail(BaseModel):
    """What was wrong, in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every error answer of 4xx and 5xx."""

    error: ErrorDetail


class LoadMetrics(Shape):
    """The server's load; null is "could not be read" and is named under `absent`."""

    cpu_usage_percent: float | None
    memory_usage_percent: float | None
    gpu_utilization: float | None
    active_requests: int | None
    queue_depth: int | None
    throughput_tokens_per_sec: float | None
    avg_latency_ms: float | None
    error_rate: float | None
    overall_load_score: float | None
    absent: list[str]


class EnsembleStatus(Shape):
    """The ensemble's members, and those that stand by."""

    strategy: str
    max_ensemble_size: int
    models: list[dict[str, Any]]
    standby: list[Any]


class Status(Shape):
    """What runs, with its configuration and the version of that."""

    config: dict[str, Any]


class OptimizationMetrics(Shape):
    """The optimizer's own figures; `performance_improvement` is null without enough evidence."""

    compilation_enabled: bool
    ensemble_models: int
    avg_optimization_time_ms: float | None
    performance_improvement: float | None


class ServerMetrics(Shape):
    """The server's figures, null where they cannot be read."""

    cpu_usage: float | None
    memory_usage: float | None
    gpu_utilization: float | None
    throughput_rps: float | None


class EnsembleShares(Shape):
    """Active members, and how often each was selected of late (fractions)."""

    active_models: list[str]
    selection_distribution: dict[str, float]


class Dashboard(Shape):
    """The live values of the dashboard."""

    timestamp: str
    system_status: str
    current_strategy: str | None
    load_score: float | None
    optimization_metrics: OptimizationMetrics
    server_metrics: ServerMetrics
    ensemble_status: EnsembleShares
