"""An open-loop client: sends at the scheduled time, never waits for answers, counts from the schedule.

A closed loop slows down with the server and so hides its queue; here a late answer delays nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from loadwise.bench.events import Event, EventReader, parse
from loadwise.clock import SystemClock
from loadwise.errors import EngineError
from loadwise.ports import Clock

Pause = Callable[[float], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Target:
    """A running OpenAI-compatible server, and how it is asked."""

    url: str
    api_key: str | None = None
    admin_key: str | None = None
    # Chat completions instead of completions; the template then adds to the prompt's length.
    chat: bool = False
    # The longest a whole answer may take, in seconds.
    timeout_s: float = 120.0

    @property
    def path(self) -> str:
        """The operation's path."""
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def headers(self) -> dict[str, str]:
        """Request headers with the keys that are set."""
        headers = {"content-type": "application/json"}
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        if self.admin_key:
            headers["x-loadwise-admin-key"] = self.admin_key
        return headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A request ready to be sent `t_s` seconds after the start."""

    t_s: float
    body: bytes
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """How one request went; times in seconds, those after the start begin at the replay's start."""

    model: str
    scheduled_s: float
    # How late the client itself was; counted in the latencies below.
    lag_s: float
    # From the scheduled time; None where nothing came.
    time_to_first_token_s: float | None = None
    # Mean time of each further token; None below two tokens.
    time_per_output_token_s: float | None = None
    total_s: float | None = None
    input_tokens: int
    output_tokens: int
    # As the server counts them.
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    status: int | None = None
    # Why it failed; None for a complete answer.
    error: str | None = None
    member: str | None = None
    strategy: str | None = None
    reason: str | None = None

    @property
    def answered(self) -> bool:
        """True for a complete answer."""
        return self.error is None


def body_of(model: str, prompt: str | Sequence[int], output_tokens: int, *, chat: bool = False) -> bytes:
    """A streaming request that gets exactly `output_tokens` tokens (`ignore_eos`, `min_tokens`)."""
    asked = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    return msgspec.json.encode(
        {
            "model": model,
            **asked,
            "max_tokens": output_tokens,
            "min_tokens": output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )


@dataclass(slots=True)
class _Answer:
    """What has been seen of one answer; moments are the clock's."""

    first_s: float | None = None
    last_s: float | None = None
    events: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model: str | None = None
    error: str | None = None
    done: bool = False

    def take(self, event: Event, now_s: float) -> None:
        """Counts one event of the stream."""
        self.done = self.done or event.done
        self.error = self.error or event.error
        self.model = self.model or event.model
        if event.has_token:
            self.first_s = now_s if self.first_s is None else self.first_s
            self.last_s = now_s
            self.events += 1
        if event.completion_tokens is not None:
            self.prompt_tokens, self.completion_tokens = event.prompt_tokens, event.completion_tokens

    def tokens(self) -> int:
        """The server's own count, or the events where it sends none (each holds at least one token)."""
        return self.events if self.completion_tokens is None else self.completion_tokens

    def pace_s(self) -> float | None:
        """Mean seconds per token after the first, None below two tokens."""
        if self.first_s is None or self.last_s is None or self.tokens() < 2:
            return None
        return (self.last_s - self.first_s) / (self.tokens() - 1)


@dataclass(slots=True)
class Client:
    """Sends requests to a target over as many connections as it takes; use it as a context."""

    target: Target
    clock: Clock = field(default_factory=SystemClock)
    pause: Pause = asyncio.sleep
    _session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        # No limit of connections: a limit would turn the open loop into a closed one.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self.target.timeout_s),
            headers=self.target.headers(),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
        self._session = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session; `EngineError` outside the context."""
        if self._session is None:
            raise EngineError("The benchmark's client is closed: use it as 'async with Client(...)'.")
        return self._session

    async def get(self, path: str) -> Any:
        """A JSON view of the server, or None where it has none; `EngineError` when it cannot be reached."""
        try:
            async with self.session.get(self.target.url + path) as response:
                return await response.json(content_type=None) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise EngineError(
                f"Cannot read {self.target.url}{path}: {_describe(error)}. Is it running?"
            ) from None

    async def replay(
        self, model: str, requests: Sequence[Planned], on_end: Callable[[Sample], None] = lambda _sample: None
    ) -> list[Sample]:
        """Every request's sample, in order of schedule; returns when the last answer ended."""
        start_s = self.clock.monotonic_s()
        tasks: list[asyncio.Task[Sample]] = []
        try:
            for planned in requests:
                await self.pause(max(0.0, start_s + planned.t_s - self.clock.monotonic_s()))
                tasks.append(asyncio.create_task(self.ask(model, planned, start_s)))
                tasks[-1].add_done_callback(lambda task: None if task.cancelled() else on_end(task.result()))
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def ask(self, model: str, planned: Planned, start_s: float) -> Sample:
        """Sends one request and reads its whole answer; failures are samples too."""
        due_s = start_s + planned.t_s
        lag_s = self.clock.monotonic_s() - due_s
        answer = _Answer()
        status: int | None = None
        headers: Any = {}
        try:
            async with self.session.post(self.target.url + self.target.path, data=planned.body) as response:
                status, headers = response.status, response.headers
                if status == 200:
                    await self._read(response, answer)
                else:
                    answer.error = _refusal(status, await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            answer.error = _describe(error)
        ended_s = self.clock.monotonic_s()
        return Sample(
            model=model,
            scheduled_s=planned.t_s,
            lag_s=lag_s,
            time_to_first_token_s=None if answer.first_s is None else answer.first_s - due_s,
            time_per_output_token_s=answer.pace_s(),
            total_s=ended_s - due_s,
            input_tokens=planned.input_tokens,
            output_tokens=planned.output_tokens,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.tokens() if answer.first_s is not None else None,
            status=status,
            error=answer.error,
            member=headers.get("x-loadwise-member") or answer.model,
            strategy=headers.get("x-loadwise-strategy"),
            reason=headers.get("x-loadwise-reason"),
        )

    async def _read(self, response: aiohttp.ClientResponse, answer: _Answer) -> None:
        reader = EventReader()
        async for chunk in response.content.iter_any():
            now_s = self.clock.monotonic_s()
            for event in reader.feed(chunk):
                answer.take(event, now_s)
        if answer.error is None and not answer.done:
            answer.error = "stream ended early"
        elif answer.error is None and answer.first_s is None:
            answer.error = "empty answer"


def _refusal(status: int, body: bytes) -> str:
    """The status, and for what is wrong with the request itself the server's words."""
    said = parse(body).error
    # Words of a full or failing server differ from answer to answer, and would not be counted together.
    return (
        f"HTTP {status}: {said:.200}" if 400 <= status < 500 and status != 429 and said else f"HTTP {status}"
    )


def _describe(error: BaseException) -> str:
    return "timeout" if isinstance(error, TimeoutError) else (str(error) or type(error).__name__)
