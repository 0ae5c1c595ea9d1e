"""Every metric's name, kind, unit, labels and buckets; pages, dashboard and rules are made from here."""

from __future__ import annotations

from loadwise.telemetry.metric import Across, Kind, Metric

# From a small embedded model's first token (milliseconds) to a long answer of a large one.
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_TIME_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
DECISION_BUCKETS_S = (5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 1e-2)

REQUESTS = Metric(
    name="loadwise_requests_total",
    kind=Kind.COUNTER,
    help="Attempts at answering that ended; each ends exactly once, as succeeded, failed, client_error (a "
    "wrong request) or abandoned by its client. One tried again has one more (loadwise_retries_total).",
    labels=("route", "member", "ending"),
)
HTTP_REQUESTS = Metric(
    name="loadwise_http_requests_total",
    kind=Kind.COUNTER,
    help="HTTP requests by the route's path and the status that was sent; client_left where the client went "
    "before any, none for a path that does not exist.",
    labels=("path", "status"),
)
RETRIES = Metric(
    name="loadwise_retries_total",
    kind=Kind.COUNTER,
    help="Further attempts at requests whose replica failed before its first byte, by the member they go to.",
    labels=("member",),
)
FAULTS = Metric(
    name="loadwise_faults_total",
    kind=Kind.COUNTER,
    help="Attempts that failed by the server's doing, not by the client's.",
    labels=("member",),
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
SPENT = Metric(
    name="loadwise_spent_total",
    kind=Kind.COUNTER,
    help="Price of the tokens of attempts that ended, in the currency of the prices; only of members with a "
    "price, and of attempts whose tokens were counted.",
    labels=("member",),
)
WITHIN_OBJECTIVES = Metric(
    name="loadwise_within_objectives_total",
    kind=Kind.COUNTER,
    help="Requests that ended well and met both objectives (time to first token, time per output token).",
    labels=("route", "member"),
)
MISSED_OBJECTIVES = Metric(
    name="loadwise_missed_objectives_total",
    kind=Kind.COUNTER,
    help="Requests that failed by the server's doing, missed an objective, or were refused for lack of room "
    "or by a fault before an engine was asked (member none).",
    labels=("route", "member"),
)
STRATEGY_SECONDS = Metric(
    name="loadwise_strategy_seconds_total",
    kind=Kind.COUNTER,
    help="Time that each strategy was in force on the most loaded pool.",
    labels=("strategy",),
)
ROLLBACKS = Metric(
    name="loadwise_rollbacks_total",
    kind=Kind.COUNTER,
    help="Configurations that were taken back because fewer requests met their objectives under them.",
)
ROLLOUTS_BACK = Metric(
    name="loadwise_rollouts_taken_back",
    kind=Kind.GAUGE,
    help="1 for a quarter of an hour after a rollout (a route, or a key on one) was taken back.",
    labels=("rollout",),
    across=Across.MAX,
)
SINK_ALERTS = Metric(
    name="loadwise_sink_alerts_total",
    kind=Kind.COUNTER,
    help="Alerts handed to a sink, by what became of them: delivered, refused (by the receiver) or dropped "
    "(its queue was full).",
    labels=("sink", "result"),
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
    help="Errors of ours that requests and the control loop survived, by the part that failed.",
    labels=("part",),
)
JOURNAL_DROPPED = Metric(
    name="loadwise_journal_dropped_total",
    kind=Kind.COUNTER,
    help="Events that the journal lost: its queue was full, or the disk took none.",
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
    across=Across.SUM,
)
LOAD_SCORE = Metric(
    name="loadwise_load_score_ratio",
    kind=Kind.GAUGE,
    help="Load of the most loaded pool, 0 to 1; absent while nothing could be measured.",
    unit="ratio",
    across=Across.MAX,
)
POOL_LOAD_SCORE = Metric(
    name="loadwise_pool_load_score_ratio",
    kind=Kind.GAUGE,
    help="Load of each pool, 0 to 1; absent where nothing could be measured.",
    unit="ratio",
    labels=("pool",),
    across=Across.MAX,
)
LOAD_COMPONENT = Metric(
    name="loadwise_load_component_ratio",
    kind=Kind.GAUGE,
    help="The load score's components per pool, 0 (idle) to 1 (saturated); absent where they cannot be read.",
    unit="ratio",
    labels=("pool", "component"),
    across=Across.MAX,
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
    across=Across.MIN,
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
    across=Across.MIN,
)
MEMBER_SHARE = Metric(
    name="loadwise_member_share_ratio",
    kind=Kind.GAUGE,
    help="Share of recent requests that each member was selected for, 0 to 1.",
    unit="ratio",
    labels=("member",),
)
MEMBER_WEIGHT = Metric(
    name="loadwise_member_weight",
    kind=Kind.GAUGE,
    help="A member's weight in voting.",
    labels=("member",),
)
LIMIT_USED = Metric(
    name="loadwise_member_limit_used_ratio",
    kind=Kind.GAUGE,
    help="How much of each limit of a member is used, 0 to 1 (a large request may exceed it): "
    "requests_per_minute, tokens_per_minute, max_concurrent_requests.",
    unit="ratio",
    labels=("member", "limit"),
    across=Across.MAX,
)
MEMBER_HEALTH = Metric(
    name="loadwise_member_health",
    kind=Kind.GAUGE,
    help="1 for the state that a member's health is in (healthy, out, ramping), 0 for the others.",
    labels=("member", "health"),
)
MEMBER_SILENT = Metric(
    name="loadwise_member_silent_seconds",
    kind=Kind.GAUGE,
    help="For how long a member has had requests and given no token on any replica that serves; absent "
    "while it has none.",
    unit="seconds",
    labels=("member",),
    across=Across.MAX,
)
REPLICA_HEALTH = Metric(
    name="loadwise_replica_health",
    kind=Kind.GAUGE,
    help="1 for the state that a replica's health is in (healthy, out, ramping), 0 for the others; absent "
    "where a member has one replica.",
    labels=("member", "replica", "health"),
)
REPLICA_SILENT = Metric(
    name="loadwise_replica_silent_seconds",
    kind=Kind.GAUGE,
    help="For how long a replica has had requests and given no token; absent while it has none, and where "
    "a member has one replica, or is out as a whole.",
    unit="seconds",
    labels=("member", "replica"),
    across=Across.MAX,
)
BUILDS = Metric(
    name="loadwise_builds",
    kind=Kind.GAUGE,
    help="Builds of compiled models by their state.",
    labels=("state",),
    across=Across.SUM,
)
IMPROVEMENT = Metric(
    name="loadwise_improvement_ratio",
    kind=Kind.GAUGE,
    help="What optimisation gained in requests within objectives, -1 to 1, with its 95 % interval's bounds; "
    "absent without enough evidence.",
    unit="ratio",
    labels=("bound",),
)
UNOPTIMISED = Metric(
    name="loadwise_unoptimised_within_objectives_ratio",
    kind=Kind.GAUGE,
    help="Share within objectives without optimisation, 0 to 1, as the gain's comparison found it.",
    unit="ratio",
)
FAILED_BUILDS = Metric(
    name="loadwise_failed_builds",
    kind=Kind.GAUGE,
    help="1 for a compiled model whose latest build failed; the original serves.",
    labels=("model",),
    across=Across.MAX,
)
ALERT_ACTIVE = Metric(
    name="loadwise_alert_active",
    kind=Kind.GAUGE,
    help="Subjects (members, replicas, pools, routes, or the server) for which an alert holds.",
    labels=("alert", "severity"),
    across=Across.MAX,
)
SINK_QUEUE = Metric(
    name="loadwise_sink_queue_alerts",
    kind=Kind.GAUGE,
    help="Alerts that wait to be delivered to a sink.",
    labels=("sink",),
    across=Across.SUM,
)
READING_AGE = Metric(
    name="loadwise_engine_reading_age_seconds",
    kind=Kind.GAUGE,
    help="Since when a replica's engine was not read.",
    unit="seconds",
    labels=("pool", "replica"),
    across=Across.MAX,
)
DECISION_AGE = Metric(
    name="loadwise_decision_age_seconds",
    kind=Kind.GAUGE,
    help="Since the control loop's latest decision; absent while it is stopped.",
    unit="seconds",
    across=Across.MAX,
)
MONITORING_AGE = Metric(
    name="loadwise_monitoring_age_seconds",
    kind=Kind.GAUGE,
    help="Since a monitoring system that is read was read well; absent without one.",
    unit="seconds",
    across=Across.MAX,
)
CPU_USAGE = Metric(
    name="loadwise_host_cpu_usage_ratio",
    kind=Kind.GAUGE,
    help="Processor use of the machine, 0 to 1.",
    unit="ratio",
    across=Across.MAX,
)
MEMORY_USAGE = Metric(
    name="loadwise_host_memory_usage_ratio",
    kind=Kind.GAUGE,
    help="Memory use of the machine, 0 to 1.",
    unit="ratio",
    across=Across.MAX,
)
GPU_USAGE = Metric(
    name="loadwise_host_gpu_usage_ratio",
    kind=Kind.GAUGE,
    help="GPU use of the machine, 0 to 1; absent without a GPU that can be read.",
    unit="ratio",
    across=Across.MAX,
)
QUEUE_DEPTH = Metric(
    name="loadwise_queue_depth_requests",
    kind=Kind.GAUGE,
    help="Requests waiting in the engines together; absent where no engine says.",
    across=Across.MAX,
)
KV_CACHE_USAGE = Metric(
    name="loadwise_kv_cache_usage_ratio",
    kind=Kind.GAUGE,
    help="Key/value cache in use, of the fullest engine, 0 to 1; absent where no engine says.",
    unit="ratio",
    across=Across.MAX,
)

METRICS: tuple[Metric, ...] = tuple(found for found in globals().values() if isinstance(found, Metric))
