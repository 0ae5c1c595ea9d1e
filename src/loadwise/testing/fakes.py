"""Fakes that pass the same contract as real engines: deterministic, and as fast as a test lets them be."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from loadwise.decision.facts import Capabilities, EngineReading, Feature
from loadwise.errors import EngineError, RequestError
from loadwise.ports import Clock, SamplingParams, TokenEvent
from loadwise.testing.clock import FakeClock

TOKEN_FEATURES = frozenset(
    {
        Feature.SEED,
        Feature.TOP_K,
        Feature.MIN_P,
        Feature.STOP_TOKEN_IDS,
        Feature.IGNORE_EOS,
        Feature.MIN_TOKENS,
        Feature.PENALTIES,
        Feature.REPETITION_PENALTY,
        Feature.LOGPROBS,
        Feature.TOP_LOGPROBS,
    }
)


class Turnstile:
    """Paces a fake engine by hand: it makes one step for each `allow`."""

    def __init__(self) -> None:
        self._steps = asyncio.Semaphore(0)

    def allow(self, steps: int = 1) -> None:
        """Lets the engine make this many more steps."""
        for _ in range(steps):
            self._steps.release()

    async def __call__(self) -> None:
        """Waits for the next allowed step."""
        await self._steps.acquire()


async def at_once() -> None:
    """The pace of an engine that steps at every turn of the event loop."""
    await asyncio.sleep(0)


class FakeStream:
    """A sequence of a fake engine: says its prompt again, from a place that the seed chooses."""

    def __init__(self, engine: FakeTokenEngine, prompt_ids: Sequence[int], sampling: SamplingParams) -> None:
        self.prompt_ids = tuple(prompt_ids)
        self.sampling = sampling
        self.cancelled = False
        self.done = False
        self.made = 0
        self._engine = engine
        self._events: deque[TokenEvent | EngineError] = deque()
        self._news = asyncio.Event()
        greedy = sampling.temperature == 0
        self._start = 0 if greedy else random.Random(sampling.seed).randrange(max(len(prompt_ids), 1))

    def step(self) -> None:
        """Adds the next token, or the end."""
        sampling = self.sampling
        ends_itself = self.made >= self._engine.answer_tokens(self) and not sampling.ignore_eos
        token = self.prompt_ids[(self._start + self.made) % len(self.prompt_ids)]
        stopped = ends_itself or token in sampling.stop_token_ids
        if stopped and self.made >= sampling.min_tokens:
            self.push(self._event((), "stop"))
            return
        self.made += 1
        last = self.made >= sampling.max_tokens
        self.push(self._event((token,), "length" if last else None))

    def push(self, item: TokenEvent | EngineError) -> None:
        """Hands an event, or the failure that ends the stream, to the reader."""
        self._events.append(item)
        self.done = self.done or isinstance(item, EngineError) or item.finish_reason is not None
        self._news.set()

    def cancel(self) -> None:
        """Frees the place at the engine's next step."""
        self.cancelled = True
        self._engine.forget(self)
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Events until the finish reason; ends early, without one, after `cancel`."""
        while True:
            while self._events:
                item = self._events.popleft()
                if isinstance(item, EngineError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
            if self.cancelled:
                return
            self._news.clear()
            await self._news.wait()

    def _event(self, tokens: tuple[int, ...], reason: str | None) -> TokenEvent:
        """Logprobs are made up but consistent: -0.5 for the chosen token, -0.5 - k for its k-th neighbour."""
        count = self.sampling.logprobs
        if count is None:
            return TokenEvent(token_ids=tokens, finish_reason=reason)
        top = tuple(tuple((token + place, -0.5 - place) for place in range(count)) for token in tokens)
        return TokenEvent(
            token_ids=tokens,
            logprobs=(-0.5,) * len(tokens),
            top_logprobs=top if count else None,
            finish_reason=reason,
        )


class FakeTokenEngine:
    """A `TokenEngine` without a model: the answer is the prompt again, `answer_length` tokens of it.

    `pace` is awaited before each step; every running sequence gets one token per step. Sequences
    beyond `capacity` wait, beyond `queue_limit` they are refused with 429.
    """

    def __init__(
        self,
        *,
        capacity: int = 4,
        queue_limit: int = 8,
        context_tokens: int = 1024,
        answer_length: int | None = None,
        features: frozenset[Feature] = TOKEN_FEATURES,
        pace: Callable[[], Awaitable[None]] = at_once,
        clock: Clock | None = None,
    ) -> None:
        self.capabilities = Capabilities(features=features, context_tokens=context_tokens, embedded=True)
        self.capacity = capacity
        self.queue_limit = queue_limit
        # What was submitted, newest last, for tests that check what arrives at an engine.
        self.submitted: deque[tuple[tuple[int, ...], SamplingParams]] = deque(maxlen=1000)
        self.steps = 0
        self._answer_length = answer_length
        self._pace = pace
        self._clock = clock or FakeClock()
        self._running: list[FakeStream] = []
        self._waiting: deque[FakeStream] = deque()
        self._failure: EngineError | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._work = asyncio.Event()

    def submit(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> FakeStream:
        """Queues a sequence; `RequestError` 429 when the queue is full, `EngineError` when it is down."""
        if self._failure is not None:
            raise self._failure
        if len(self._running) >= self.capacity and len(self._waiting) >= self.queue_limit:
            raise RequestError(
                "The waiting queue is full; try again in a moment.",
                status=429,
                kind="rate_limit_error",
                code="queue_full",
                retry_after_s=1.0,
            )
        stream = FakeStream(self, prompt_ids, sampling)
        self.submitted.append((stream.prompt_ids, sampling))
        self._waiting.append(stream)
        self._admit()
        self._work.set()
        return stream

    def reading(self) -> EngineReading:
        """What runs and waits now; cache use is the share of places taken."""
        return EngineReading(
            replica_id="fake",
            read_s=self._clock.monotonic_s(),
            running_requests=len(self._running),
            waiting_requests=len(self._waiting),
            capacity_requests=self.capacity,
            queue_capacity_requests=self.queue_limit,
            kv_cache_usage_fraction=len(self._running) / self.capacity,
        )

    async def start(self) -> None:
        """Begins to step; a second call changes nothing."""
        self._failure = None
        if self._loop_task is None:
            self._loop_task = asyncio.create_task(self._run(), name="fake-engine")

    async def close(self) -> None:
        """Ends the streams in flight with an `EngineError`."""
        task, self._loop_task = self._loop_task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self.fail("The engine was closed.")

    def fail(self, message: str) -> None:
        """Breaks the engine: streams in flight end with an `EngineError`, new ones are refused."""
        self._failure = EngineError(message)
        for stream in [*self._running, *self._waiting]:
            stream.push(EngineError(message))
        self._running.clear()
        self._waiting.clear()

    def answer_tokens(self, stream: FakeStream) -> int:
        """How long a stream's answer is when nothing else ends it."""
        return len(stream.prompt_ids) if self._answer_length is None else self._answer_length

    def forget(self, stream: FakeStream) -> None:
        """Frees a cancelled stream's place, whether it ran or waited."""
        if stream in self._running:
            self._running.remove(stream)
        elif stream in self._waiting:
            self._waiting.remove(stream)
        self._admit()

    async def _run(self) -> None:
        while True:
            if not self._running:
                self._work.clear()
                await self._work.wait()
            await self._pace()
            self._step()

    def _step(self) -> None:
        self.steps += 1
        for stream in list(self._running):
            stream.step()
        self._running = [stream for stream in self._running if not stream.done]
        self._admit()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.capacity:
            self._running.append(self._waiting.popleft())
