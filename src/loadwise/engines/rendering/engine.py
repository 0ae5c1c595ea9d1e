"""`RenderedEngine`: a `TokenEngine` with everything OpenAI-shaped around it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from loadwise.decision.facts import Capabilities, Endpoint, EngineReading, Feature
from loadwise.engines.rendering.aside import Aside
from loadwise.engines.rendering.bodies import decode_chat, decode_completion
from loadwise.engines.rendering.frames import STREAM_HEADERS, Frames, failure
from loadwise.engines.rendering.job import Job, Prepared
from loadwise.engines.rendering.plan import Plan, plan_chat, plan_completion, text_messages
from loadwise.engines.rendering.template import ChatTemplate
from loadwise.engines.tokenizer import Tokenizer
from loadwise.errors import EngineError, RequestError
from loadwise.ports import Answer, Call, Clock, Progress, TokenEngine

# Bodies above this are read and encoded in a thread: about 2 ms of work.
INLINE_BODY_BYTES = 4096


class RenderedEngine:
    """An `Engine` over a `TokenEngine` in this process: text in, text out, in OpenAI's shapes.

    `aside` answers what needs the features that it adds.
    """

    def __init__(
        self,
        token_engine: TokenEngine,
        tokenizer_folder: Path | Tokenizer,
        model_id: str,
        replica_id: str,
        clock: Clock,
        aside: Aside | None = None,
    ) -> None:
        tokenizer = (
            Tokenizer.load(tokenizer_folder) if isinstance(tokenizer_folder, Path) else tokenizer_folder
        )
        self.tokenizer = tokenizer
        self.model_id = model_id
        self.replica_id = replica_id
        self._engine = token_engine
        self._aside = aside
        self._clock = clock
        self._template = (
            ChatTemplate(None, {}, clock)
            if tokenizer.folder is None
            else ChatTemplate.load(tokenizer.folder, clock)
        )
        self._system_fingerprint = f"loadwise-{_version()}-{tokenizer.fingerprint[:8]}"

    @property
    def capabilities(self) -> Capabilities:
        """What the token engine offers, and what rendering adds."""
        inner = self._engine.capabilities
        added = {Feature.N, Feature.GREEDY_CHOICES, Feature.ECHO, Feature.TOKEN_IDS}
        if Feature.LOGPROBS in inner.features:
            added.add(Feature.BEST_OF)
        if self._aside is not None:
            added |= self._aside.features
        return replace(
            inner,
            features=inner.features | added,
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            embedded=True,
        )

    async def answer(self, call: Call) -> Answer:
        """Answers in OpenAI's shape; the first token is there when it returns.

        Errors of the request are answers with their status; `EngineError` means nothing was sent.
        """
        try:
            job = await self._submitted(call)
        except RequestError as error:
            return refusal(error)
        if call.stream:
            return await _streaming(job)
        body = await job.whole()
        return Answer(status=200, headers=_json_headers(body), chunks=_once(body), progress=job.progress)

    async def count_tokens(self, call: Call) -> int | None:
        """Tokens of the call's longest prompt; None for a body that cannot be read."""
        try:
            prepared = await self._prepared(call)
        except RequestError as error:
            known = error.code == "context_length_exceeded"
            return getattr(error, "prompt_tokens", None) if known else None
        return max(len(ids) for ids in prepared.prompt_ids)

    async def observe(self) -> EngineReading:
        """The token engine's reading under this replica's name, with the requests of the one beside it."""
        own, beside = self._engine.reading(), None if self._aside is None else self._aside.reading()
        if beside is not None:
            own = replace(
                own,
                running_requests=_sum(own.running_requests, beside.running_requests),
                waiting_requests=_sum(own.waiting_requests, beside.waiting_requests),
            )
        return replace(own, replica_id=self.replica_id)

    async def start(self) -> None:
        """Starts the token engine."""
        await self._engine.start()

    async def close(self) -> None:
        """Closes the token engine; streams in flight end with an error event."""
        if self._aside is not None:
            await self._aside.close()
        await self._engine.close()

    async def _submitted(self, call: Call) -> Job:
        prepared = await self._prepared(call)
        self._check_places(prepared)
        frames = Frames(
            endpoint=call.endpoint,
            request_id=call.request_id,
            model=self.model_id,
            created_s=int(self._clock.wall_s()),
            fingerprint=self._system_fingerprint,
            tokenizer=self.tokenizer,
        )
        job = Job(prepared, frames, self.tokenizer, self._clock)
        engine = await self._engine_for(prepared.plan)
        job.progress.aside = engine is not self._engine
        job.submit(engine, engine.capabilities.context_tokens)
        return job

    async def _engine_for(self, plan: Plan) -> TokenEngine:
        """The member's own engine where it can."""
        offered = self._engine.capabilities.features
        if self._aside is None or not plan.top_logprobs or Feature.TOP_LOGPROBS in offered:
            return self._engine
        return await self._aside.engine("top_logprobs" if plan.endpoint is Endpoint.CHAT else "logprobs")

    def _check_places(self, prepared: Prepared) -> None:
        """Refuses what could not be queued on an idle engine either: trying again would not help."""
        if prepared.sequences == 1:
            return
        reading = self._engine.reading()
        if reading.capacity_requests is None or reading.queue_capacity_requests is None:
            return
        places = reading.capacity_requests + reading.queue_capacity_requests
        if prepared.sequences > places:
            param = "prompt" if len(prepared.prompt_ids) > 1 else "n"
            raise RequestError(
                f"{param}: {prepared.sequences} answers are asked for in one request, and this model "
                f"has room for {places}. Ask for fewer.",
                param=param,
            )

    async def _prepared(self, call: Call) -> Prepared:
        if len(call.body) <= INLINE_BODY_BYTES:
            return self._prepare(call)
        return await asyncio.to_thread(self._prepare, call)

    def _prepare(self, call: Call) -> Prepared:
        plan = self._plan(call)
        self._check_ids(plan.sampling.stop_token_ids, "stop_token_ids")
        prompt_ids = tuple(self._ids(prompt, plan.add_special) for prompt in plan.prompts)
        for ids in prompt_ids:
            self._check_length(len(ids), exact=True)
        return Prepared(plan=plan, prompt_ids=prompt_ids)

    def _plan(self, call: Call) -> Plan:
        features = self.capabilities.features
        if call.endpoint is Endpoint.COMPLETION:
            return plan_completion(decode_completion(call.body), features)
        body = decode_chat(call.body)
        options = dict(body.chat_template_kwargs or {})
        if body.add_generation_prompt is not None:
            options["add_generation_prompt"] = body.add_generation_prompt
        return plan_chat(body, self._template.render(text_messages(body.messages), options), features)

    def _ids(self, prompt: str | tuple[int, ...], add_special: bool) -> tuple[int, ...]:
        if isinstance(prompt, str):
            self._check_length(self.tokenizer.fewest_tokens(prompt), exact=False)
            ids = self.tokenizer.encode(prompt, add_special=add_special)
        else:
            ids = prompt
            self._check_ids(ids, "prompt")
        if not ids:
            raise RequestError("prompt: at least one token is needed.", param="prompt")
        return ids

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        highest, end = max(ids, default=0), self.tokenizer.vocabulary_size
        if highest >= end:
            raise RequestError(f"{param}: token id {highest} is not in 0..{end - 1}.", param=param)

    def _check_length(self, tokens: int, *, exact: bool) -> None:
        """Raises unless a prompt of this many tokens leaves room for at least one more."""
        context = self._engine.capabilities.context_tokens
        if context is None or tokens < context:
            return
        amount = f"{tokens}" if exact else f"more than {tokens}"
        raise PromptTooLong(
            f"This model's context is {context} tokens; the prompt has {amount}. Shorten the prompt.",
            prompt_tokens=tokens,
        )


class PromptTooLong(RequestError):
    """A 400 with the code that clients know for prompts that do not fit."""

    def __init__(self, message: str, *, prompt_tokens: int) -> None:
        super().__init__(message, code="context_length_exceeded", param="prompt")
        # Never above the truth.
        self.prompt_tokens = prompt_tokens


def refusal(error: RequestError) -> Answer:
    """An error answer in OpenAI's shape, with `retry-after` where one is known."""
    body = msgspec.json.encode(error.body())
    headers = _json_headers(body)
    if error.retry_after_s is not None:
        headers.append(("retry-after", str(max(1, math.ceil(error.retry_after_s)))))
    return Answer(status=error.status, headers=headers, chunks=_once(body))


class StreamBody:
    """A stream whose first chunk is there already; a failure after it becomes an error event."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], progress: Progress) -> None:
        self._first: bytes | None = first
        self._rest = rest
        self._progress = progress

    def __aiter__(self) -> StreamBody:
        return self

    async def __anext__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._progress.failed:
            raise StopAsyncIteration
        try:
            return await self._rest.__anext__()
        except EngineError as error:
            self._progress.failed = True
            return failure(RequestError(str(error), status=500, kind="server_error", code="engine_error"))

    async def aclose(self) -> None:
        """Frees the engine's place; may be called twice."""
        await self._rest.aclose()


async def _streaming(job: Job) -> Answer:
    rest = job.sse()
    first = await rest.__anext__()
    return Answer(
        status=200,
        headers=STREAM_HEADERS,
        chunks=StreamBody(first, rest, job.progress),
        progress=job.progress,
    )


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _json_headers(body: bytes) -> list[tuple[str, str]]:
    return [("content-type", "application/json"), ("content-length", str(len(body)))]


def _version() -> str:
    try:
        return version("loadwise")
    except PackageNotFoundError:
        return "0"
