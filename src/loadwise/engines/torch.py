"""The `TokenEngine` port over `loadwise.torch_engine`: the reference engine, and the path to a GPU.

The model runs on a thread of its own. News of a step come to the event loop in one call; submitting,
cancelling and reading take a lock that is never held while the model runs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loadwise.decision.facts import Capabilities, EngineReading, Feature
from loadwise.engines.torch_builds import CompileStep, ServedStep
from loadwise.errors import ConfigurationError, EngineError, MissingExtraError
from loadwise.logs import get_logger, said_by
from loadwise.ports import Clock, SamplingParams, TokenEvent
from loadwise.torch_engine.engine import Engine, Output
from loadwise.torch_engine.scheduler import Limits
from loadwise.torch_engine.sequence import Finish, Sampled, Sampling
from loadwise.torch_engine.sequence import Sequence as Running
from loadwise.torch_engine.thread import EngineThread

if TYPE_CHECKING:
    from loadwise.torch_engine.loading import LoadedModel

log = get_logger(__name__)

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
        Feature.TOP_LOGPROBS,
    }
)


class TorchStream:
    """The tokens of one sequence as they come; belongs to the event loop that submitted it."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._items: deque[TokenEvent | EngineError] = deque()
        self._news = asyncio.Event()
        self._ended = False

    def push(self, item: TokenEvent | EngineError) -> None:
        """Hands an event, or the failure that ends the stream, to the reader."""
        self._items.append(item)
        self._ended = self._ended or isinstance(item, EngineError) or item.finish_reason is not None
        self._news.set()

    def cancel(self) -> None:
        """Frees the place within one step; may be called twice, also after the end."""
        if not self._ended:
            self._ended = True
            self._cancel()
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Events until the finish reason; ends early, without one, after `cancel`."""
        while True:
            while self._items:
                item = self._items.popleft()
                if isinstance(item, EngineError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
            if self._ended:
                return
            self._news.clear()
            await self._news.wait()


class TorchTokenEngine:
    """A model folder served by torch in this process; passes `testing.engine_contract`."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock,
        model_id: str | None = None,
        max_running: int = 32,
        queue_limit: int = 128,
        kv_cache_bytes: int = 64 * 1024**2,
        device: str = "cpu",
        dtype: str | None = None,
        weights: str | None = None,
        compile_step: CompileStep | None = None,
        prompts: Path | None = None,
    ) -> None:
        """`weights`: small ones ("int8"), a variant. `prompts`: a file that builds are held against."""
        self.folder = folder
        self.model_id = model_id or folder.name
        self._clock = clock
        self._max_running, self._queue_limit = max_running, queue_limit
        self._kv_cache_bytes = kv_cache_bytes
        self._device, self._dtype, self._weights = device, dtype, weights
        self._compile_step = compile_step
        self._prompts = prompts
        self._engine: Engine | None = None
        self._thread: EngineThread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context_tokens: int | None = None
        self._streams: dict[Running, TorchStream] = {}

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; the context is known once it has started."""
        return Capabilities(features=FEATURES, context_tokens=self._context_tokens, embedded=True)

    def submit(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> TorchStream:
        """Queues a sequence; `RequestError` 429 when the queue is full, 400 when it cannot fit."""
        engine, thread = self._engine, self._thread
        if engine is None or thread is None:
            raise EngineError(f"{self.model_id} is not running: start it first.")
        sequence = engine.submit(prompt_ids, _sampling(sampling))
        stream = TorchStream(partial(self._cancel, sequence))
        # Before the thread wakes: news of this sequence must find its stream.
        self._streams[sequence] = stream
        thread.wake()
        return stream

    def reading(self) -> EngineReading:
        """Running, waiting, cache use and speeds; without waiting for a step."""
        read_s = self._clock.monotonic_s()
        if self._engine is None:
            return EngineReading(replica_id=self.model_id, read_s=read_s)
        now = self._engine.snapshot()
        return EngineReading(
            replica_id=self.model_id,
            read_s=read_s,
            running_requests=now.running,
            waiting_requests=now.waiting,
            capacity_requests=now.places,
            queue_capacity_requests=now.queue,
            kv_cache_usage_fraction=now.cache_usage_fraction,
            prompt_tokens_per_s=now.prompt_tokens_per_s,
            output_tokens_per_s=now.output_tokens_per_s,
            last_token_s=now.last_token_s,
            time_to_first_token_s=now.time_to_first_token_s,
            time_per_output_token_s=now.time_per_output_token_s,
        )

    async def start(self) -> None:
        """Loads the model off the event loop; `ConfigurationError` names what is not supported."""
        if self._thread is not None:
            return
        self._loop = asyncio.get_running_loop()
        engine, prepare = await asyncio.to_thread(self._load)
        self._context_tokens = engine.limits.context_tokens
        self._engine = engine
        self._thread = EngineThread(engine, self._deliver, self._failed, f"torch-{self.model_id}", prepare)
        self._thread.start()

    async def close(self) -> None:
        """Ends what runs with an `EngineError` and frees the model; may be called twice."""
        engine, thread = self._engine, self._thread
        self._engine = self._thread = None
        if engine is None or thread is None:
            return
        await asyncio.to_thread(thread.close)
        self._break(engine.drain(), f"{self.model_id} was closed.")

    def _load(self) -> tuple[Engine, Callable[[], None]]:
        try:
            from loadwise.torch_engine.loading import load
            from loadwise.torch_engine.runner import Runner
        except ImportError as error:
            raise MissingExtraError(
                f"The torch engine needs {error.name}: install loadwise[torch].", name=error.name
            ) from error
        loaded = load(self.folder, device=self._device, dtype=self._dtype, weights=self._weights)
        limits = Limits(
            places=self._places(loaded),
            waiting=self._queue_limit,
            context_tokens=loaded.context_tokens,
            vocabulary=loaded.vocabulary,
        )
        runner = Runner(loaded, limits.places, limits.context_tokens)
        if self._compile_step is not None:
            folder, name = self.folder, self.model_id
            served = ServedStep(runner, folder, name, weights=self._weights, prompts=self._prompts)
            runner.step = served.compiled(self._compile_step)
        engine = Engine(runner, limits, loaded.eos_token_ids, self._clock.monotonic_s)
        return engine, runner.prepare

    def _places(self, loaded: LoadedModel) -> int:
        from loadwise.torch_engine.cache import columns_for

        each = loaded.shape.bytes_per_token * columns_for(loaded.context_tokens)
        fitting = self._kv_cache_bytes // each
        if fitting < 1:
            raise ConfigurationError(
                f"kv_cache_bytes is {self._kv_cache_bytes}, but one sequence of {self.model_id} "
                f"({loaded.context_tokens} tokens) needs {each}. Set kv_cache_bytes to {each} or more.",
                field="kv_cache_bytes",
            )
        return min(self._max_running, fitting)

    def _cancel(self, sequence: Running) -> None:
        self._streams.pop(sequence, None)
        engine, thread = self._engine, self._thread
        if engine is not None and thread is not None:
            engine.cancel(sequence)
            thread.wake()

    def _deliver(self, outputs: Sequence[Output]) -> None:
        self._tell(partial(self._hand_over, outputs))

    def _failed(self, sequences: Sequence[Running], error: BaseException) -> None:
        log.error("step_failed", member=self.model_id, error=said_by(error), exc_info=error)
        message = f"{self.model_id} failed in a step ({type(error).__name__}); try again."
        self._tell(partial(self._break, sequences, message))

    def _tell(self, news: Callable[[], None]) -> None:
        """Runs `news` on the event loop; a loop that has ended has nobody left to hear it."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(news)

    def _hand_over(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            finished = output.finish is not None
            streams = self._streams
            stream = streams.pop(output.sequence, None) if finished else streams.get(output.sequence)
            if stream is not None and output.finish is not Finish.CANCELLED:
                stream.push(_event(output))

    def _break(self, sequences: Sequence[Running], message: str) -> None:
        for sequence in sequences:
            stream = self._streams.pop(sequence, None)
            if stream is not None:
                stream.push(EngineError(message))


def _sampling(params: SamplingParams) -> Sampling:
    return Sampling(
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        seed=params.seed,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs,
    )


def _event(output: Output) -> TokenEvent:
    tokens: tuple[Sampled, ...] = () if output.sampled is None else (output.sampled,)
    logprobs = tuple(token.logprob for token in tokens if token.logprob is not None)
    tops = tuple(token.top for token in tokens if token.top)
    return TokenEvent(
        token_ids=tuple(token.token_id for token in tokens),
        logprobs=logprobs or None,
        top_logprobs=tops or None,
        finish_reason=None if output.finish is None else output.finish.value,
        queued_s=output.sequence.queued_s,
    )
