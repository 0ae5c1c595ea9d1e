"""The server's side: places, statistics and streams over a child that computes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from loadwise.decision.facts import Capabilities, EngineReading, Feature
from loadwise.engines.openvino.child import Child
from loadwise.engines.openvino.configs import read_configs
from loadwise.engines.openvino.precision import PRECISIONS
from loadwise.engines.openvino.turns import Turns
from loadwise.engines.openvino.wire import (
    GOES_ON,
    LOST,
    STOPPED,
    Cancel,
    Event,
    Failed,
    Load,
    News,
    Ready,
    Step,
    Submit,
)
from loadwise.engines.streams import QueuedStream
from loadwise.errors import ConfigurationError, EngineError, MissingExtraError, RequestError
from loadwise.ports import Clock, SamplingParams, TokenEvent
from loadwise.torch_engine.statistics import Statistics

# No TOP_LOGPROBS: the pipeline returns the chosen token's logprob only, and after sampling's filters.
FEATURES = frozenset(
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
    }
)
START_S = 120.0
RESTART_S = 1.0
RESTART_MOST_S = 30.0


def _properties(precision: str | None) -> dict[str, str]:
    """None leaves it to the child, which sees what suits the processor."""
    if precision is None:
        return {}
    if precision not in PRECISIONS:
        raise ConfigurationError(
            f"Unknown precision {precision!r}. Choose {', '.join(PRECISIONS)}.", field="precision"
        )
    return PRECISIONS[precision].properties


class _Entry:
    """What the server keeps of a sequence."""

    __slots__ = ("first", "prompt_tokens", "since_s", "stream")

    def __init__(self, stream: QueuedStream, prompt_tokens: int, since_s: float) -> None:
        self.stream = stream
        self.prompt_tokens = prompt_tokens
        self.since_s = since_s
        self.first = True


class OpenVinoEngine:
    """A `TokenEngine` over a model folder in OpenVINO form; a child that dies is started again."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock,
        max_running: int = 32,
        queue_limit: int = 128,
        kv_cache_bytes: int = 64 * 1024**2,
        threads: int | None = None,
        precision: str | None = None,
        replica_id: str = "",
    ) -> None:
        if find_spec("openvino_genai") is None:
            raise MissingExtraError("OpenVINO GenAI is not installed: pip install 'loadwise[openvino]'.")
        self._folder = folder
        self._clock = clock
        self._max_running = max_running
        self._queue_limit = queue_limit
        self._replica_id = replica_id
        config, self._eos_ids = read_configs(folder)
        context = config.get("max_position_embeddings")
        self.capabilities = Capabilities(features=FEATURES, context_tokens=context, embedded=True)
        self._load = Load(
            str(folder), max_running, kv_cache_bytes, context or 2048, threads, _properties(precision)
        )
        self._entries: dict[int, _Entry] = {}
        self._turns = Turns(max_running)
        self._keys = itertools.count(1)
        self._statistics = Statistics()
        self._held_tokens = 0
        self._cache_tokens: int | None = None
        self._child: Child | None = None
        self._ready: asyncio.Future[None] | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._down: str | None = "The engine was not started."

    def submit(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> QueuedStream:
        """Queues a sequence; 429 when the bounded queue is full, `EngineError` while the child is down."""
        if self._down is not None or self._child is None:
            raise EngineError(self._down or "The engine is closed.")
        if len(self._entries) >= self._max_running + self._queue_limit:
            raise _queue_full(self._retry_after_s())
        key, now_s = next(self._keys), self._clock.monotonic_s()
        stream = QueuedStream(lambda: self._cancel(key))
        self._entries[key] = _Entry(stream, len(prompt_ids), now_s)
        self._turns.joined(key, now_s)
        ends = () if sampling.ignore_eos else self._eos_ids
        self._child.send(Submit(key, tuple(prompt_ids), (*sampling.stop_token_ids, *ends), sampling))
        return stream

    def reading(self) -> EngineReading:
        """Counts of now, and what the last seconds showed."""
        now_s, statistics, total = self._clock.monotonic_s(), self._statistics, len(self._entries)
        running = min(total, self._max_running)
        return EngineReading(
            replica_id=self._replica_id,
            read_s=now_s,
            running_requests=running,
            waiting_requests=total - running,
            capacity_requests=self._max_running,
            queue_capacity_requests=self._queue_limit,
            kv_cache_usage_fraction=self._cache_usage(),
            prompt_tokens_per_s=statistics.prompt_tokens.rate_per_s(now_s),
            output_tokens_per_s=statistics.output_tokens.rate_per_s(now_s),
            last_token_s=statistics.output_tokens.last_s,
            time_to_first_token_s=statistics.first_token_s.mean(now_s),
            time_per_output_token_s=statistics.per_token_s.mean(now_s),
        )

    async def start(self) -> None:
        """Returns when the model is loaded; `EngineError` says why it cannot be."""
        if self._child is None:
            await self._launch()

    async def close(self) -> None:
        """Ends the child; streams in flight end with an `EngineError`."""
        self._down = "The engine was closed."
        restarting, self._restarting = self._restarting, None
        if restarting is not None:
            restarting.cancel()
            await asyncio.gather(restarting, return_exceptions=True)
        child, self._child = self._child, None
        self._drop(self._down)
        if child is not None:
            await child.stop()

    async def _launch(self) -> None:
        self._ready = asyncio.get_running_loop().create_future()
        child = Child(self._on_news, self._on_end)
        await child.start()
        self._child = child
        child.send(self._load)
        try:
            async with asyncio.timeout(START_S):
                await self._ready
        except TimeoutError:
            self._child = None
            await child.stop()
            raise EngineError(f"{self._folder} was not loaded within {START_S:g} s.") from None
        except BaseException:
            self._child = None
            await child.stop()
            raise
        self._down = None

    def _on_news(self, news: News) -> None:
        if isinstance(news, Step):
            self._on_step(news)
        elif isinstance(news, Failed):
            self._fail(f"OpenVINO cannot run {self._folder}: {news.message}")
        elif isinstance(news, Ready):
            self._cache_tokens = news.kv_cache_tokens
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(None)

    def _on_step(self, step: Step) -> None:
        """Hands every sequence its tokens, and notes the times of them all at once."""
        now_s, statistics, entries = self._clock.monotonic_s(), self._statistics, self._entries
        self._held_tokens = step.held_tokens
        tokens = later = 0
        later_s = 0.0
        for event in step.events:
            entry = entries.get(event.key)
            if entry is None:
                continue
            count, queued_s = len(event.token_ids), None
            if count and entry.first:
                entry.first, queued_s = False, self._turns.waited_s(event.key)
                statistics.prompt(now_s, entry.prompt_tokens)
                statistics.first_token_s.add(now_s, now_s - entry.since_s)
            elif count:
                later += count
                later_s += now_s - entry.since_s
            entry.since_s = now_s
            tokens += count
            if event.ending != GOES_ON:
                del entries[event.key]
                self._turns.left(event.key, now_s)
            entry.stream.push(_translated(event, queued_s))
        if tokens:
            statistics.output_tokens.add(now_s, float(tokens))
        if later:
            statistics.per_token_s.add(now_s, later_s, later)

    def _on_end(self) -> None:
        """The child is gone: what ran has failed; unless it was closed, another is started."""
        was_ready = self._ready is not None and self._ready.done() and not self._ready.exception()
        self._fail(f"The engine process of {self._folder.name} ended unexpectedly.")
        if self._child is not None and was_ready and self._restarting is None:
            self._child = None
            self._restarting = asyncio.create_task(self._restart(), name="openvino-restart")

    async def _restart(self) -> None:
        wait_s = RESTART_S
        while True:
            await asyncio.sleep(wait_s)
            try:
                await self._launch()
            except EngineError as error:
                self._down = str(error)
                wait_s = min(wait_s * 2, RESTART_MOST_S)
            else:
                self._restarting = None
                return

    def _fail(self, message: str) -> None:
        self._down = self._down or message
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(EngineError(message))
        self._drop(message)

    def _drop(self, message: str) -> None:
        entries, self._entries = self._entries, {}
        self._turns.clear()
        self._held_tokens = 0
        for entry in entries.values():
            entry.stream.push(EngineError(message))

    def _cancel(self, key: int) -> None:
        if self._entries.pop(key, None) is None:
            return
        self._turns.left(key, self._clock.monotonic_s())
        if self._child is not None:
            self._child.send(Cancel(key))

    def _cache_usage(self) -> float | None:
        return None if self._cache_tokens is None else min(self._held_tokens / self._cache_tokens, 1.0)

    def _retry_after_s(self) -> float:
        """A guess: one place is free after a first token's time; at least a second."""
        mean_s = self._statistics.first_token_s.mean(self._clock.monotonic_s())
        return max(1.0, min(mean_s or 1.0, 120.0))


def _translated(event: Event, queued_s: float | None = None) -> TokenEvent | EngineError:
    if event.ending == LOST:
        return EngineError("The sequence did not fit into the engine's cache: raise kv_cache_bytes.")
    reason = None if event.ending == GOES_ON else "stop" if event.ending == STOPPED else "length"
    return TokenEvent(
        token_ids=event.token_ids, logprobs=event.logprobs, finish_reason=reason, queued_s=queued_s
    )


def _queue_full(retry_after_s: float) -> RequestError:
    return RequestError(
        "This model's waiting queue is full; try again later.",
        status=429,
        kind="rate_limit_error",
        code="queue_full",
        retry_after_s=retry_after_s,
    )
