"""Every metric's name, kind, unit, labels and buckets; reference pages are generated from here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What Prometheus calls a metric's type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One line of the table. Units are base units and end the name, as Prometheus asks."""

    name: str
    kind: Kind
    help: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    # Upper bounds of a histogram's buckets, ascending, without +Inf.
    buckets: tuple[float, ...] = ()


# From a small embedded model's first token (milliseconds) to a long answer of a large one.
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_TIME_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
DECISION_BUCKETS_S = (5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 1e-2)

REQUESTS = Metric(
    name="loadwise_requests_total",
    kind=Kind.COUNTER,
    help="Requests that ended; each ends exactly once, as succeeded, failed or abandoned by its client.",
    labels=("route", "member", "ending"),
)
REFUSED = Metric(
    name="loadwise_refused_requests_total",
    kind=Kind.COUNTER,
    help="Requests refused before an engine was chosen, by the status they got.",
    labels=("status",),
)
DECISIONS = Metric(
    name="loadwise_decisions_total",
    kind=Kind.COUNTER,
    help="Dispatch decisions, by the strategy in force and the reason of the choice.",
    labels=("member", "strategy", "reason"),
)
DECISION_SECONDS = Metric(
    name="loadwise_decision_seconds",
    kind=Kind.HISTOGRAM,
    help="Time to decide one request: admission, member, replica and parameters.",
    unit="seconds",
    buckets=DECISION_BUCKETS_S,
)
TUNED = Metric(
    name="loadwise_tuned_parameters_total",
    kind=Kind.COUNTER,
    help="Parameters that a decision set or clamped in a request.",
    labels=("parameter",),
)
REQUEST_SECONDS = Metric(
    name="loadwise_request_seconds",
    kind=Kind.HISTOGRAM,
    help="Time from dispatch to the end of a request that succeeded.",
    unit="seconds",
    labels=("member",),
    buckets=LATENCY_BUCKETS_S,
)
FIRST_TOKEN_SECONDS = Metric(
    name="loadwise_time_to_first_token_seconds",
    kind=Kind.HISTOGRAM,
    help="Time from dispatch to the first token.",
    unit="seconds",
    labels=("member",),
    buckets=LATENCY_BUCKETS_S,
)
OUTPUT_TOKEN_SECONDS = Metric(
    name="loadwise_time_per_output_token_seconds",
    kind=Kind.HISTOGRAM,
    help="Mean time per token after the first one, of each request that succeeded.",
    unit="seconds",
    labels=("member",),
    buckets=TOKEN_TIME_BUCKETS_S,
)
PROMPT_TOKENS = Metric(
    name="loadwise_prompt_tokens_total",
    kind=Kind.COUNTER,
    help="Prompt tokens of requests that ended.",
    labels=("member",),
)
OUTPUT_TOKENS = Metric(
    name="loadwise_output_tokens_total",
    kind=Kind.COUNTER,
    help="Tokens generated for requests that ended.",
    labels=("member",),
)
WITHIN_OBJECTIVES = Metric(
    name="loadwise_within_objectives_total",
    kind=Kind.COUNTER,
    help="Requests that ended well and met both objectives (time to first token, time per output token).",
    labels=("member",),
)
STEPS = Metric(
    name="loadwise_control_steps_total",
    kind=Kind.COUNTER,
    help="Steps of the control loop, by the reason of their decision.",
    labels=("reason",),
)
STEP_ERRORS = Metric(
    name="loadwise_control_errors_total",
    kind=Kind.COUNTER,
    help="Errors that a part of the control loop survived.",
    labels=("part",),
)
ALERTS_FIRED = Metric(
    name="loadwise_alerts_total",
    kind=Kind.COUNTER,
    help="Alerts that began.",
    labels=("alert", "severity"),
)
IN_FLIGHT = Metric(
    name="loadwise_in_flight_requests",
    kind=Kind.GAUGE,
    help="Requests dispatched and not yet ended.",
    labels=("member",),
)
LOAD_SCORE = Metric(
    name="loadwise_load_score_ratio",
    kind=Kind.GAUGE,
    help="Load of the most loaded pool, 0 to 1; absent while nothing could be measured.",
    unit="ratio",
)
STRATEGY = Metric(
    name="loadwise_strategy_active",
    kind=Kind.GAUGE,
    help="1 for the strategy in force, 0 for the others.",
    labels=("strategy",),
)
RUNNING = Metric(
    name="loadwise_optimization_running",
    kind=Kind.GAUGE,
    help="1 while the control loop runs, 0 while it is stopped.",
)
CONFIG_VERSION = Metric(
    name="loadwise_config_version",
    kind=Kind.GAUGE,
    help="Version of the configuration in force.",
)
MEMBER_QUALITY = Metric(
    name="loadwise_member_quality_ratio",
    kind=Kind.GAUGE,
    help="A member's quality, 0 to 1; absent where it is unknown.",
    unit="ratio",
    labels=("member",),
)
MEMBER_ACTIVE = Metric(
    name="loadwise_member_active",
    kind=Kind.GAUGE,
    help="1 for an active member, 0 for one that stands by or is out.",
    labels=("member",),
)
ALERT_ACTIVE = Metric(
    name="loadwise_alert_active",
    kind=Kind.GAUGE,
    help="1 while an alert's condition holds.",
    labels=("alert",),
)
CPU_USAGE = Metric(
    name="loadwise_host_cpu_usage_ratio",
    kind=Kind.GAUGE,
    help="Processor use of the machine, 0 to 1.",
    unit="ratio",
)
MEMORY_USAGE = Metric(
    name="loadwise_host_memory_usage_ratio",
    kind=Kind.GAUGE,
    help="Memory use of the machine, 0 to 1.",
    unit="ratio",
)
GPU_USAGE = Metric(
    name="loadwise_host_gpu_usage_ratio",
    kind=Kind.GAUGE,
    help="GPU use of the machine, 0 to 1; absent without a GPU that can be read.",
    unit="ratio",
)
QUEUE_DEPTH = Metric(
    name="loadwise_queue_depth_requests",
    kind=Kind.GAUGE,
    help="Requests waiting in the engines together; absent where no engine says.",
)
KV_CACHE_USAGE = Metric(
    name="loadwise_kv_cache_usage_ratio",
    kind=Kind.GAUGE,
    help="Key/value cache in use, of the fullest engine, 0 to 1; absent where no engine says.",
    unit="ratio",
)

METRICS: tuple[Metric, ...] = (
    REQUESTS,
    REFUSED,
    DECISIONS,
    DECISION_SECONDS,
    TUNED,
    REQUEST_SECONDS,
    FIRST_TOKEN_SECONDS,
    OUTPUT_TOKEN_SECONDS,
    PROMPT_TOKENS,
    OUTPUT_TOKENS,
    WITHIN_OBJECTIVES,
    STEPS,
    STEP_ERRORS,
    ALERTS_FIRED,
    IN_FLIGHT,
    LOAD_SCORE,
    STRATEGY,
    RUNNING,
    CONFIG_VERSION,
    MEMBER_QUALITY,
    MEMBER_ACTIVE,
    ALERT_ACTIVE,
    CPU_USAGE,
    MEMORY_USAGE,
    GPU_USAGE,
    QUEUE_DEPTH,
    KV_CACHE_USAGE,
)


def reference() -> str:
    """The table as Markdown, for the documentation."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels) or '-'} "
        f"| {metric.help} |"
        for metric in METRICS
    ]
    return "\n".join(rows) + "\n"
