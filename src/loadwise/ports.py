"""Where the shells meet: protocols of at most five methods, and what passes through them.

Two floors of engines. A `TokenEngine` turns token ids into token ids in this process; everything
OpenAI-shaped around it (templates, stop strings, server-sent events, usage) is rendered once for
all of them. An `Engine` answers OpenAI-shaped calls, whether it renders them itself or forwards
them; the gateway knows only `Engine`.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from loadwise.decision.facts import (
    ANONYMOUS,
    Capabilities,
    Endpoint,
    EngineReading,
    HostReading,
    Number,
    Outcome,
    Principal,
    RequestFacts,
    StrategyName,
)
from loadwise.decision.quick import fact

JsonObject = dict[str, Any]


class Clock(Protocol):
    """Time as the shells see it; simulations and tests bring their own."""

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...

    def wall_s(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        ...


# --- token engines ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """One sequence's sampling, fully resolved. Ranges are checked before it is made."""

    max_tokens: int
    min_tokens: int = 0
    # 0 means greedy.
    temperature: float = 1.0
    top_p: float = 1.0
    # 0 means no limit.
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    # None: no logprobs; 0: the chosen token's; k: also the k most likely.
    logprobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One or more new tokens of a sequence; the last event of a stream has a finish reason."""

    token_ids: tuple[int, ...]
    # Natural logarithms, one per token; None when not asked for.
    logprobs: tuple[float, ...] | None = None
    # Per token: (token id, logprob), most likely first.
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None
    # "stop" (end-of-sequence or a stop token id, not included in token_ids), "length", or None.
    finish_reason: str | None = None
    # Seconds for which the sequence waited for a place, with its first token if it is known at all.
    queued_s: float | None = field(default=None, compare=False)


class TokenStream(Protocol):
    """The tokens of one sequence as they come; raises EngineError when the engine fails."""

    def __aiter__(self) -> AsyncIterator[TokenEvent]: ...

    def cancel(self) -> None:
        """Frees the place within one step; may be called twice, also after the end."""
        ...


class TokenEngine(Protocol):
    """An engine in this process. Its matrix products never run on the event loop."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; fixed once it has started."""
        ...

    def submit(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> TokenStream:
        """Queues a sequence; `RequestError` with status 429 when the bounded queue is full."""
        ...

    def reading(self) -> EngineReading:
        """Running, waiting, cache use, speeds; without waiting for a step."""
        ...

    async def start(self) -> None:
        """Loads and warms up; `EngineError` when it cannot serve."""
        ...

    async def close(self) -> None:
        """Ends what runs; streams in flight end with an EngineError."""
        ...


# --- engines ---------------------------------------------------------------------------------


@fact(frozen=True, slots=True, kw_only=True)
class Call:
    """An OpenAI-shaped request on its way to an engine; the body is already edited."""

    endpoint: Endpoint
    body: bytes
    request_id: str
    stream: bool = False
    # With its boundary where the body is a form; else the body is JSON.
    content_type: str = "application/json"
    # Lower-case names; what the gateway lets through to upstreams (traceparent and the like).
    headers: Mapping[str, str] = field(default_factory=dict)
    # When its body was there (monotonic); None where nobody noted it.
    received_s: float | None = None


@dataclass(slots=True)
class Progress:
    """What is known of an answer while it is read; an engine fills it, the gateway reads it."""

    prompt_tokens: int | None = None
    cached_tokens: int = 0
    output_tokens: int | None = None
    # The engine's clock (monotonic) when the first token came.
    first_token_s: float | None = None
    # Seconds for which its sequence waited for a place; None where the engine does not tell.
    queued_s: float | None = None
    finish_reason: str | None = None
    # An error event was sent inside a stream that had already begun.
    failed: bool = False
    # Another engine than the member's usual one made it: its times say nothing of the member's.
    aside: bool = False


@dataclass(slots=True)
class Answer:
    """An engine's answer. `chunks` yields the body as it comes; closing it frees the place."""

    status: int
    headers: Sequence[tuple[str, str]]
    chunks: AsyncIterator[bytes]
    progress: Progress = field(default_factory=Progress)


@runtime_checkable
class Engine(Protocol):
    """One replica: answers OpenAI-shaped calls. Real or fake, it passes `testing.engine_contract`."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; fixed once it has started."""
        ...

    async def answer(self, call: Call) -> Answer:
        """Answers, errors of the engine included (status 4xx/5xx in OpenAI's shape).

        Raises `EngineError` when nothing was sent yet and another replica may be tried. Cancelling
        the awaiting task, or closing `chunks`, frees the engine's place within one step.
        """
        ...

    async def count_tokens(self, call: Call) -> int | None:
        """Exact prompt tokens of a call (templates included), or None when it cannot know."""
        ...

    async def observe(self) -> EngineReading:
        """What it says of itself now; figures it cannot give are None."""
        ...

    async def start(self) -> None:
        """Loads and warms up; `EngineError` when it cannot serve."""
        ...

    async def close(self) -> None:
        """Ends what runs and frees what it holds; may be called twice."""
        ...


class HostSensor(Protocol):
    """Reads the machine; never blocks the event loop."""

    def read(self) -> HostReading:
        """Utilisation since the last call; figures it cannot give are None."""
        ...


# --- what the gateway needs of the optimizer ---------------------------------------------------


@fact(frozen=True, slots=True, kw_only=True)
class PromptSize:
    """Prompt length in tokens: exact where a tokenizer was at hand, and a bound never below it.

    `expected` is what a prompt is likely to be that nobody counted; None where that is not known.
    """

    exact: int | None
    bound: int
    expected: int | None = None


class Advice(NamedTuple):
    """What would have been chosen for a request, why, and what would have been set in its body."""

    member_id: str
    reason: str
    changes: Mapping[str, Number]


class Enrolled(NamedTuple):
    """The comparisons that a request takes part in, each by the number under which it began; None: in none.

    A number is never used again, so that what is said of the request later counts nowhere else.
    """

    # Of conversations, and whether this one is left alone.
    conversations: int | None = None
    left_alone: bool = False
    # Of a rollout, at which of its steps, of which key where the settings name it, within its share or not.
    rollout: int | None = None
    step: int = 0
    key: str | None = None
    rolled_out: bool = True


@fact(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """A decided request: where it goes, what is changed, and why. Ends exactly once (`finish`)."""

    request: RequestFacts
    member_id: str
    replica_id: str
    engine: Engine
    # The strategy in force, also when it was not applied.
    strategy: StrategyName
    # Low cardinality, for example "adaptive_high_load", "named", "conversation", "control", "off".
    reason: str
    propensity: float
    # Fields to set in the body, for example {"max_tokens": 512}.
    changes: Mapping[str, Number] = field(default_factory=dict)
    config_version: int = 1
    started_s: float = 0.0
    concurrency: int = 1
    # The pool's requests in flight weighed by cost, this one included; for `Outcome.work`.
    work: float | None = None
    # Seconds for which a place is expected to be waited for; for `Outcome.wait_s`.
    wait_s: float = 0.0
    # What reading the prompt is expected to take; None where places are not known, for `Outcome.queue_s`.
    read_s: float | None = None
    # Of the work, other members'; for `Outcome.beside`.
    beside: float = 0.0
    load_score: float | None = None
    # Served without optimisation.
    control: bool = False
    # What would have been done, where optimisation only advises.
    advised: Advice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One line of `/v1/models`."""

    model_id: str
    kind: str  # "route" or "member"
    created_s: int
    context_tokens: int | None = None
    quality: float | None = None


class Director(Protocol):
    """Decides each request and hears how it ended. `dispatch` never waits."""

    def models(self, principal: Principal = ANONYMOUS) -> Sequence[ModelCard]:
        """Those that the principal may ask: routes first, then members."""
        ...

    async def measure(self, model: str, call: Call) -> PromptSize:
        """The prompt's length for the members that `model` names."""
        ...

    def dispatch(self, request: RequestFacts, exclude: frozenset[str] = frozenset()) -> Dispatch:
        """Chooses member and replica, not among the replica ids in `exclude` (a retry).

        Raises `RequestError`: 404 unknown model, 400 naming the field no member can serve or a
        prompt that fits none, 429 with `retry_after_s` when full, 503 when nothing can answer.
        """
        ...

    def finish(self, dispatch: Dispatch, outcome: Outcome) -> None:
        """Records how it ended; a second call for the same dispatch changes nothing."""
        ...

    def refused(self, request_id: str, model: str, status: int) -> None:
        """Counts a request that failed in the gateway, with `status`, before `dispatch` was asked."""
        ...


class View(StrEnum):
    """What the control plane can show."""

    STATUS = "status"
    METRICS = "metrics"
    ENSEMBLE = "ensemble"
    REPORT = "report"
    DASHBOARD = "dashboard"
    # What the page shows: one moment, what happened over time, and the diagnosis as text.
    LIVE = "live"
    TIMELINE = "timeline"
    DIAGNOSIS = "diagnosis"


@dataclass(frozen=True, slots=True, kw_only=True)
class Configure:
    """Change settings as a whole; omitted fields keep their value."""

    changes: Mapping[str, Any]
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Begin optimising; nothing happens when it already runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Stop optimising; serving goes on with the default member and nothing touched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddModel:
    """Admit a name from the catalogue to the ensemble."""

    model_id: str
    initial_weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recompile:
    """Start a real rebuild; None means every compiled model."""

    model_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """Score (0..1) an answer; `source` says who or what judged it, `principal` who sends it."""

    request_id: str
    score: float
    source: str
    principal: Principal = ANONYMOUS


Command = Configure | Start | Stop | AddModel | Recompile | Feedback


class Control(Protocol):
    """The control plane's way in: views are read, commands applied whole or refused."""

    async def read(self, view: View, **options: Any) -> JsonObject:
        """A view as JSON values. `REPORT` takes `export_file: bool`."""
        ...

    async def apply(self, command: Command) -> JsonObject:
        """Raises `ConfigurationError`, `CapacityError` or `UnknownNameError`, and changes nothing then."""
        ...


# --- the compiler and the rest -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """Whether an optional part works here; `reason` says what is missing, for example "g++"."""

    ok: bool
    reason: str = ""


# A callable that computes, made to give way to requests after each of its calls.
Paced = Callable[[Callable[..., Any]], Callable[..., Any]]
# What a model's owner finds of a form of it, in that precision, computing as `Paced` says: plain figures, and
# "wrong", in words.
Judge = Callable[[Callable[..., Any], str, Paced], JsonObject]


def at_once(call: Callable[..., Any]) -> Callable[..., Any]:
    """A `Paced` for where no requests are: the callable itself."""
    return call


class Recipe(Protocol):
    """How another process makes the very module that serves here; its fields are plain values."""

    def as_json(self) -> JsonObject:
        """The fields, for the process that makes the module again."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """A module and how it is called, for a backend to make a faster form of."""

    model: Any
    model_id: str
    mode: str
    # Positional and keyword arguments of real calls, the backend's to change; at least one.
    examples: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]
    # torch.export's notation of sizes that vary; None leaves that to `dynamic`.
    dynamic_shapes: Any = None
    # False: only calls of the first example's sizes need to be served.
    dynamic: bool = True
    # SHA-256 of the model's parameters and buffers.
    digest: Callable[[], str] | None = None
    # With it the child makes and traces the module; without it this process must trace.
    recipe: Recipe | None = None
    timeout_s: float = 600.0
    memory_bytes: int = 8 * 1024**3
    # True: it is made anew even where it is kept.
    fresh: bool = False
    # True: it is opened where it is kept, never made.
    kept_only: bool = False
    # Share of time in which the build may compute, asked again all the time; 1.0 while nothing else does.
    share: Callable[[], float] = lambda: 1.0
    # Told, while it is made away from this process, how many seconds of processor time that took so far.
    progress: Callable[[float], None] = lambda computed_s: None
    # Set when the build is no longer wanted.
    stop: threading.Event = field(default_factory=threading.Event)


class Verdict(StrEnum):
    """What became of a build once it was there."""

    PROMOTED = "promoted"
    SLOWER = "slower"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A form of a module that is ready to be called, and the calls it can take."""

    call: Callable[..., Any]
    accepts: Callable[[tuple[Any, ...], Mapping[str, Any]], bool]
    # It was made by an earlier process.
    kept: bool = False
    # Told of the verdict: a promoted build stays for the next start.
    settle: Callable[[Verdict], None] = lambda verdict: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """In which numbers a build computes; a quantised one is a variant with a quality of its own."""

    precision: str = "float32"
    quantised: bool = False


class BuildBackend(Protocol):
    """Makes faster forms of modules, away from the request path."""

    name: str
    # By mode, the cheapest to make first.
    forms: Mapping[str, Form]

    def available(self) -> Availability:
        """Whether it works on this machine, and what is missing otherwise."""
        ...

    def build(self, request: BuildRequest) -> Built:
        """A form that answers as the model does; `BuildError` says why not. Takes seconds to minutes."""
        ...


class PackagingBackend(BuildBackend, Protocol):
    """A backend whose builds are files, which another process can open without tracing."""

    def versions(self) -> Mapping[str, str]:
        """Of everything that a package depends on."""
        ...

    def make(self, request: BuildRequest, folder: Path) -> None:
        """The package is in `folder`, which is private and empty; `BuildError` says why not."""
        ...

    def open(self, request: BuildRequest, folder: Path) -> Built:
        """The package in `folder` on the request's model; nothing is traced or compiled."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A condition that holds, with its evidence and what to do about it."""

    name: str
    severity: str  # "ticket" or "page"
    summary: str
    remedy: str
    # How to take back what the optimizer changed.
    undo: str = ""
    # The member, replica, pool or route concerned; empty for the whole server.
    subject: str = ""
    evidence: Mapping[str, Number | str | None] = field(default_factory=dict)
    # Seconds since 1970-01-01 UTC.
    since_s: float = 0.0
    resolved: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What tells alerts apart: name and subject."""
        return self.name, self.subject


class AlertSink(Protocol):
    """Where alerts go; must not block."""

    def deliver(self, alert: Alert) -> None:
        """Takes the alert, or counts it as dropped when its queue is full."""
        ...
