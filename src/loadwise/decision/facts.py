"""What the shells may tell the core: plain, frozen facts with units in their names.

The world has four nouns. A *route* is a public model name (`auto` is one); its *members* are the
variants that may answer it; each member has *replicas* (one engine instance or URL each); a *pool*
is what shares an engine or a device, so load and strategy belong to pools.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loadwise.decision.limits import NO_LIMITS, Limits
from loadwise.decision.price import Price
from loadwise.decision.quick import Word, fact
from loadwise.decision.tags import ANY_TAGS, TagRule

Number = int | float


class StrategyName(Word):
    """How a pool is run at its present load."""

    PERFORMANCE = "performance"
    BALANCED = "balanced"
    QUALITY = "quality"


class EnsembleStrategy(Word):
    """How a member is selected among those that can answer."""

    WEIGHTED_VOTING = "weighted_voting"
    BEST_OF_N = "best_of_n"
    ADAPTIVE = "adaptive"


class Feature(Word):
    """What a request may need of an engine; the value is the request's field that asks for it."""

    # Tools that the model may call or not; calls that are required, named or forbidden; calls in a stream.
    TOOLS = "tools"
    TOOL_CHOICE = "tool_choice"
    STREAMED_TOOLS = "stream"
    # Turns that call tools, and their results.
    TOOL_TURNS = "tool_calls"
    RESPONSE_FORMAT = "response_format"
    MEDIA = "messages"
    LOGIT_BIAS = "logit_bias"
    REASONING_EFFORT = "reasoning_effort"
    # One budget under the names that servers give it; each knows its own.
    THINKING_TOKEN_BUDGET = "thinking_token_budget"  # noqa: S105 - a field of requests
    THINKING_BUDGET = "thinking_budget"
    MAX_THINKING_TOKENS = "max_thinking_tokens"
    LOGPROBS = "logprobs"
    TOP_LOGPROBS = "top_logprobs"
    N = "n"
    # Several choices of greedy sampling: one answer, which engines refuse to give several times.
    GREEDY_CHOICES = "temperature"
    BEST_OF = "best_of"
    ECHO = "echo"
    SUFFIX = "suffix"
    SEED = "seed"
    TOP_K = "top_k"
    MIN_P = "min_p"
    STOP_TOKEN_IDS = "stop_token_ids"  # noqa: S105 - a field of requests
    IGNORE_EOS = "ignore_eos"
    MIN_TOKENS = "min_tokens"
    TOKEN_IDS = "prompt"  # noqa: S105 - a field of requests
    PENALTIES = "frequency_penalty"
    REPETITION_PENALTY = "repetition_penalty"
    PRIORITY = "priority"


class Endpoint(Word):
    """The data-plane operation that a request uses; the value is its path, ours and the engine's."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"
    EMBEDDINGS = "/v1/embeddings"
    SPEECH = "/v1/audio/speech"
    TRANSCRIPTIONS = "/v1/audio/transcriptions"
    TRANSLATIONS = "/v1/audio/translations"
    IMAGES = "/v1/images/generations"
    IMAGE_EDITS = "/v1/images/edits"


# What every engine answers, and whose parameters loadwise supplies.
COMPLETIONS = frozenset({Endpoint.CHAT, Endpoint.COMPLETION})
# Answers made of generated tokens: only their times say how fast a member generates.
GENERATED = COMPLETIONS | {Endpoint.RESPONSES, Endpoint.MESSAGES}


class Ending(Word):
    """How a request ended; every request ends exactly once."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    # The client left: this says nothing about a model's speed.
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine declares of itself; `None` means not known, never assumed."""

    features: frozenset[Feature] = frozenset()
    # An upstream that was not probed: nothing is refused on its behalf.
    features_known: bool = True
    context_tokens: int | None = None
    tokenizer_fingerprint: str | None = None
    # None: not known, so nothing is refused for it.
    endpoints: frozenset[Endpoint] | None = COMPLETIONS
    # Adapters of its model that it serves besides, by name; None where it does not tell.
    adapters: frozenset[str] | None = None
    # The engine's sampling defaults come from loadwise (embedded), not from the model's author.
    embedded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """A request within both is within its objectives (goodput counts those)."""

    time_to_first_token_s: float = 1.0
    time_per_output_token_s: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One engine instance; `pool_id` names what it shares a device with."""

    replica_id: str
    pool_id: str
    # Requests it can run at once; None where it cannot be read.
    capacity_requests: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One variant that may answer a route; quality in 0..1, None when unknown.

    A member of unknown quality is neither preferred nor avoided for it: it ranks as the mean of the
    known ones. Where none is known, adaptive prefers the default member, then the cheaper.
    """

    member_id: str
    replicas: tuple[Replica, ...]
    quality: float | None = None
    weight: float = 1.0
    # Relative cost of one token, for a member nobody has measured yet (parameters work well).
    relative_cost: float | None = None
    capabilities: Capabilities = Capabilities(features_known=False, endpoints=None)
    # What its tokens cost in money; None where the operator does not say.
    price: Price | None = None
    limits: Limits = NO_LIMITS
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A public model name. `members` are active, in order; stand-by members are not listed."""

    name: str
    members: tuple[Member, ...]
    default_member: str
    objectives: Objectives = Objectives()
    strategy: EnsembleStrategy = EnsembleStrategy.WEIGHTED_VOTING
    # `auto` never answers from a member known to be below it.
    quality_floor: float = 0.0
    # False: only the default member answers `auto` (preset production without allow_degrade).
    allow_degrade: bool = True
    # 0..1: how much the price of an answer counts beside its quality and speed.
    price_weight: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks. There is always one, also without keys."""

    key_id: str = "anonymous"
    tenant: str = "default"
    scopes: frozenset[str] = frozenset()
    optimize: bool = True
    # Operator's ceilings of explicit values, for example {"max_tokens": 512}.
    ceilings: Mapping[str, Number] = field(default_factory=dict)
    # Which members may answer it, also when it names one.
    tags: TagRule = ANY_TAGS


ANONYMOUS = Principal()


@fact(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """What decisions need of a request; nothing of what it says."""

    request_id: str
    endpoint: Endpoint = Endpoint.CHAT
    # The route or the member that the client named.
    model: str = "auto"
    # Exact where a tokenizer was at hand, else None; the bound is never below the truth.
    prompt_tokens: int | None = None
    prompt_tokens_bound: int | None = None
    # The client's own values of max_tokens, temperature, top_k, top_p ...; absent ones are not here.
    explicit: Mapping[str, Number] = field(default_factory=dict)
    features: frozenset[Feature] = frozenset()
    stream: bool = False
    n: int = 1
    # Session id, or a hash of the conversation's opening; None for a completion without a session.
    conversation_id: str | None = None
    # True when an earlier assistant turn or a session id ties it to the conversation's member.
    continues: bool = False
    principal: Principal = ANONYMOUS
    # The request said x-loadwise: off.
    off: bool = False
    # 0..1: how much quality and speed count for this client; None for no preference.
    quality_preference: float | None = None
    speed_preference: float | None = None
    # Of a prompt that nobody counted: what such bounds turned out to be.
    prompt_tokens_expected: int | None = None

    @property
    def prompt_length(self) -> int | None:
        """The prompt's tokens as far as they are known: exact, else expected, else the bound."""
        exact, expected = self.prompt_tokens, self.prompt_tokens_expected
        return exact if exact is not None else expected if expected is not None else self.prompt_tokens_bound


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReading:
    """What one replica's engine says of itself; None is "could not be read", never zero."""

    replica_id: str
    read_s: float
    running_requests: int | None = None
    waiting_requests: int | None = None
    # Places that run at once, and places that may wait.
    capacity_requests: int | None = None
    queue_capacity_requests: int | None = None
    kv_cache_usage_fraction: float | None = None
    prompt_tokens_per_s: float | None = None
    output_tokens_per_s: float | None = None
    # False where that counts answers as they end, not tokens as they come.
    tokens_counted_live: bool = True
    # When a token last came, to the time between two readings; None before the first, or where only
    # the speed tells.
    last_token_s: float | None = None
    # Recent averages (tens of seconds), None without recent requests.
    time_to_first_token_s: float | None = None
    time_per_output_token_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReading:
    """The machine's own figures, in percent (0..100)."""

    read_s: float
    cpu_usage_percent: float | None = None
    memory_usage_percent: float | None = None
    gpu_utilization_percent: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceReading:
    """What the gateway itself saw of recent answers (a sliding window)."""

    read_s: float
    active_requests: int | None = None
    requests_per_s: float | None = None
    avg_latency_ms: float | None = None
    error_fraction: float | None = None
    time_to_first_token_s: float | None = None


@fact(frozen=True, slots=True, kw_only=True)
class MemberPressure:
    """A member's queue at this moment, counted by the gateway: O(1) to keep, fresh to the request."""

    member_id: str
    # Requests in flight on this member, and on everything that shares its pool.
    in_flight: int
    pool_in_flight: int
    # Output tokens still owed by those in flight on the pool (an estimate from past answers).
    pool_owed_tokens: float = 0.0
    # Places of the member's healthy replicas together; None when unknown.
    capacity_requests: int | None = None
    waiting_requests: int | None = None


@fact(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one request went. Times are measured by us or the engine, never by the client."""

    request_id: str
    member_id: str
    replica_id: str
    ending: Ending
    finished_s: float
    route: str = "auto"
    total_s: float | None = None
    # From dispatch to the first token; None when no token came or nobody could see it.
    time_to_first_token_s: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    output_tokens: int | None = None
    # "stop" means that the answer ended by itself.
    finish_reason: str | None = None
    # In flight on the member's pool when it was dispatched, itself included.
    concurrency: int = 1
    # The choice's `work`: the pool's requests in flight, weighed by cost; None where no choice was made.
    work: float | None = None
    # Seconds for which a place was expected to be waited for; 0 where one was free.
    wait_s: float = 0.0
    # From the body's last byte to the question to the engine, before `total_s` begins; None: not measured.
    gateway_s: float | None = None
    # Of the time to the first token, the wait for a place (`stages.queued_s`); None: could not be told.
    queue_s: float | None = None
    # Of the work, that of other members' requests on the same device; above 0 also where some ran at its end.
    beside: float = 0.0
    load_score: float | None = None
    # False: no generated text, or not by the member's usual engine: its times say nothing of that one's.
    generated: bool = True
    # HTTP status where there was one; a 4xx other than 429 is the client's, not the member's.
    status: int | None = None
    # Served without optimisation (control block, off, stopped).
    control: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Why a decision was made, in figures that a person can check."""

    name: str
    value: Number | str | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """An operator's range for one parameter; the control loop never leaves it."""

    low: Number
    high: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingTarget:
    """One column of the strategy table: what a strategy asks for."""

    max_tokens: int
    temperature: float
    top_k: int
    compile_mode: str


# The origin's table; `balanced` lies between the two by load.
PERFORMANCE_TARGET = SamplingTarget(max_tokens=512, temperature=0.7, top_k=40, compile_mode="max-autotune")
QUALITY_TARGET = SamplingTarget(max_tokens=2048, temperature=0.8, top_k=100, compile_mode="default")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadWeights:
    """Weights of the load score's components; absent components are left out and the rest rescaled.

    Saturation signals (queue, KV cache, work in flight, time to first token) weigh above raw
    utilisation, which says little for an LLM server.
    """

    queue: float = 0.40
    kv_cache: float = 0.20
    in_flight: float = 0.20
    time_to_first_token: float = 0.12
    cpu: float = 0.02
    memory: float = 0.015
    gpu: float = 0.03
    error_rate: float = 0.015


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The whole configuration of the core: data only, made by `OptimizationConfig.policy()`."""

    load_threshold_high: float = 0.8
    load_threshold_low: float = 0.3
    # A threshold must be passed by this much, on the way back, before the strategy changes.
    hysteresis: float = 0.05
    dwell_s: float = 30.0
    # A change of the score by this much between two samples a second apart skips the dwell once.
    jump: float = 0.25
    tuning_interval_s: float = 30.0
    weights: LoadWeights = field(default_factory=LoadWeights)
    objectives: Objectives = Objectives()
    compile_mode: str = "default"
    enable_dynamic_tuning: bool = True
    enable_ensemble: bool = True
    # temperature and top_k are sent to servers that are not embedded only when True, inside ranges.
    tune_sampling: bool = False
    ranges: Mapping[str, Range] = field(default_factory=dict)
    # Operator's ceilings of explicit values for everyone; a principal's own may lie lower.
    ceilings: Mapping[str, Number] = field(default_factory=dict)
    # Beliefs without fresh outcomes drift back to their prior with this half-life.
    belief_half_life_s: float = 300.0
    # Readings older than this count as absent.
    stale_after_s: float = 30.0
    error_rate_alert: float = 0.05
    latency_alert_ms: float = 500.0
    improvement_alert: float = 0.10
    # Share of requests that shall be within objectives; the rest is the error budget.
    objective_target: float = 0.99
    # The load score's component `queue` from which a queue counts as saturated.
    queue_alert: float = 0.95
    # Without a token for so long a member counts as silent, and is a page unless it was taken out.
    silent_alert_s: float = 15.0
    silent_page_s: float = 30.0
    # The loop, or all readings of a pool, standing still for so long is a page.
    stale_page_s: float = 60.0
    rollback_shown_s: float = 900.0
    # Whether requests whose first token would come later than its objective are refused.
    refuse_late: bool = True
