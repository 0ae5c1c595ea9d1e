"""An `Engine` over any OpenAI-compatible server: what comes in goes out, and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import Any

import msgspec

from loadwise.decision.facts import COMPLETIONS, Capabilities, Endpoint, EngineReading, Feature
from loadwise.engines import forms
from loadwise.engines.accounting import Accounting
from loadwise.engines.dialects import reader_of
from loadwise.engines.forwarding import outgoing, request_headers, response_headers
from loadwise.engines.http_client import HttpClient
from loadwise.engines.http_connection import Response
from loadwise.engines.listing import UpstreamModel, adapters_of, context_of, listed, misses
from loadwise.engines.relay import OneBody, UpstreamStream, read_whole
from loadwise.engines.standing import Standing
from loadwise.engines.upstream_metrics import read_scrape
from loadwise.errors import EngineError
from loadwise.ports import Answer, Call, Clock, Progress
from loadwise.settings import TimeoutSettings

# Sooner than whoever asks how an engine is gives up (2 s): what is late is then read by our own requests.
SCRAPE_S = 1.0
# A probing request generates a few tokens, perhaps on a busy server.
PROBE_S = 30.0
# A server without metrics is asked again after this long.
ASK_AGAIN_S = 60.0
MAX_BODY_BYTES = 64 * 1024**2
MAX_SCRAPE_BYTES = 8 * 1024**2


class OpenAIEngine:
    """One upstream: follows no redirect, keeps no cookie, knows no proxy, invents nothing.

    `url` may end in `/v1` or not. `model` is the name it serves the model under; None: the first that
    it lists. `context_tokens` overrides what it says of itself.
    """

    def __init__(
        self,
        url: str,
        *,
        replica_id: str,
        clock: Clock,
        model: str | None = None,
        api_key: str | None = None,
        timeouts: TimeoutSettings | None = None,
        capacity_requests: int | None = None,
        context_tokens: int | None = None,
        endpoints: frozenset[Endpoint] | None = None,
        features: frozenset[Feature] = frozenset(),
        probe: bool = False,
    ) -> None:
        self.base = url.rstrip("/").removesuffix("/v1")
        self.replica_id = replica_id
        self.model = model
        self._first_listed = model is None
        self._api_key = api_key
        self._clock = clock
        self._timeouts = timeouts or TimeoutSettings()
        # What the operator says, and what the server lists.
        self._context_tokens = context_tokens
        self._listed_context: int | None = None
        self._endpoints = endpoints
        # As last listed.
        self._adapters: frozenset[str] | None = None
        # What the operator vouches for, whatever is seen.
        self._features = features
        self._standing = Standing(self._asked, probe=probe)
        self._accounting = Accounting(clock, replica_id, capacity_requests)
        self._http: HttpClient | None = None
        self._open: set[UpstreamStream] = set()
        self._no_metrics_until_s: float | None = None
        # A server that knows no stream_options says so once.
        self._ask_usage = True

    @property
    def capabilities(self) -> Capabilities:
        """What the operator said and what was seen; of a server that was not probed nothing is refused."""
        seen = self._standing.seen
        return Capabilities(
            features=self._features | (frozenset() if seen is None else seen.features),
            features_known=seen is not None,
            context_tokens=self._context_tokens or self._listed_context,
            endpoints=self._endpoints if seen is None or self._endpoints is not None else seen.endpoints,
            tokenizer_fingerprint=None if seen is None else seen.tokenizer_fingerprint,
            adapters=self._adapters,
        )

    async def start(self) -> None:
        """Opens the session and asks for the model's name; a server that is down is asked later."""
        if self._http is None:
            self._http = HttpClient(self.base, connect_s=self._timeouts.connect_s)
        try:
            await self._join()
        except EngineError:
            # It may come up later; until then each call says that it is down.
            self._standing.left()

    async def _join(self) -> None:
        await self.discover()
        await self._standing.joined(self.model)

    async def _asked(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        """A probing request's status and body."""
        if method == "GET":
            return await self._get(path, PROBE_S, MAX_SCRAPE_BYTES)
        headers = {"content-type": "application/json"}
        content = msgspec.json.encode(body)
        return await self._request("POST", path, PROBE_S, MAX_SCRAPE_BYTES, headers, content)

    async def close(self) -> None:
        """Closes every connection; streams in flight end with an error event."""
        await self._standing.close()
        for stream in list(self._open):
            await stream.aclose()
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def models(self) -> list[UpstreamModel]:
        """What the server lists under `/v1/models`; `EngineError` when it cannot be asked."""
        status, raw = await self._get("/v1/models", self._timeouts.connect_s + SCRAPE_S, MAX_SCRAPE_BYTES)
        try:
            return listed(raw) if status == 200 else []
        except msgspec.MsgspecError as error:
            raise EngineError(f"{self.base}/v1/models cannot be understood: {error}") from None

    async def discover(self) -> None:
        """Takes the model's name and context from the server where they were not configured; its adapters."""
        models = await self.models()
        if self._first_listed and models and self.model not in {each.model_id for each in models}:
            self.model = models[0].model_id
        self._adapters = adapters_of(self.model, models)
        self._listed_context = context_of(self.model, models)

    async def answer(self, call: Call) -> Answer:
        """The server's answer, errors included; `EngineError` when there is none.

        Of a stream the first bytes are there when it returns.
        """
        if self.model is None:
            await self.discover()
        asks = call.stream and self._ask_usage and call.endpoint in COMPLETIONS
        body, asking = _outgoing(call, self.model, usage=asks)
        began_s = self._clock.monotonic_s()
        self._accounting.in_flight += 1
        ticket = _Ticket(self._accounting, Progress(), began_s)
        try:
            answer = await self._answer(call, body, asking, ticket)
            if asking and answer.status == 400 and await self._refuses_options(answer):
                self._ask_usage = False
                body, _ = _outgoing(call, self.model, usage=False)
                answer = await self._answer(call, body, False, ticket)
        except BaseException:
            ticket.end()
            raise
        if not isinstance(answer.chunks, UpstreamStream):
            ticket.end()
        return answer

    async def count_tokens(self, call: Call) -> int | None:
        """None: only the server's own tokenizer would know."""
        return None

    async def observe(self) -> EngineReading:
        """From the server's metrics where it offers them, else from our own requests.

        `EngineError` when the server cannot be reached.
        """
        try:
            reading = await self._observed()
        except _LateError:
            if not self._accounting.in_flight:
                self._standing.left()
                raise
            # It works for us, too busy to tell of itself; one that hangs is found out by its silence.
            return self._accounting.late()
        except EngineError:
            self._standing.left()
            raise
        self._standing.answered(self._join)
        return reading

    async def _observed(self) -> EngineReading:
        now_s = self._clock.monotonic_s()
        if self._no_metrics_until_s is not None and now_s < self._no_metrics_until_s:
            return self._accounting.own()
        status, raw = await self._get("/metrics", SCRAPE_S, MAX_SCRAPE_BYTES)
        scrape = read_scrape(raw.decode("utf-8", "replace"), self.model) if status == 200 else None
        if scrape is None or scrape.empty:
            self._no_metrics_until_s = now_s + ASK_AGAIN_S
            return self._accounting.own()
        return self._accounting.scraped(scrape)

    async def _answer(self, call: Call, body: bytes, hide_usage: bool, ticket: _Ticket) -> Answer:
        deadline_s = asyncio.get_running_loop().time() + self._timeouts.total_s
        response = await self._post(call, body)
        if 300 <= response.status < 400:
            response.close()
            raise EngineError(
                f"{self.base} answered with a redirect ({response.status}); name its real address."
            )
        headers = response_headers(response.headers)
        progress = ticket.progress
        kind = response.header("content-type")
        if response.status != 200 or not call.stream or not kind.startswith("text/event-stream"):
            raw = await self._whole(response)
            if response.status == 404 and self.model is not None and misses(raw, self.model):
                # The name is ours, not the client's: an adapter that is gone, or another server.
                raise EngineError(f"{self.base} does not serve the model {self.model!r}.")
            reader_of(call.endpoint, progress, self._clock.monotonic_s).whole(raw)
            # Of an answer that comes at once nobody saw the first token.
            progress.first_token_s = None
            headers.append(("content-length", str(len(raw))))
            return Answer(status=response.status, headers=headers, chunks=OneBody(raw), progress=progress)
        stream = UpstreamStream(
            response,
            progress,
            call.endpoint,
            self._clock,
            hide_usage=hide_usage,
            idle_s=self._timeouts.idle_s,
            deadline_s=deadline_s,
            on_end=lambda: self._over(stream, ticket),
        )
        self._open.add(stream)
        try:
            await stream.begin(self._timeouts.first_byte_s)
        except BaseException:
            await stream.aclose()
            raise
        return Answer(status=200, headers=headers, chunks=stream, progress=progress)

    def _over(self, stream: UpstreamStream, ticket: _Ticket) -> None:
        self._open.discard(stream)
        ticket.end()

    async def _post(self, call: Call, body: bytes) -> Response:
        """The response, once its head is there."""
        headers = request_headers(call, self._api_key)
        until_s = asyncio.get_running_loop().time() + self._timeouts.first_byte_s
        try:
            return await self._live.request("POST", call.endpoint, headers, body, until_s)
        except TimeoutError:
            raise EngineError(f"{self.base} did not answer in time.") from None
        except OSError as error:
            raise EngineError(f"{self.base} cannot be reached: {_reason(error)}") from None

    async def _whole(self, response: Response) -> bytes:
        try:
            if response.ended:
                # Small answers come with their head: there is nothing to wait for, and so to time.
                return await response.piece()
            async with asyncio.timeout(self._timeouts.total_s):
                return await read_whole(response, MAX_BODY_BYTES)
        except TimeoutError:
            raise EngineError(f"{self.base} did not finish in time.") from None
        except OSError as error:
            raise EngineError(f"{self.base} broke off: {_reason(error)}") from None
        finally:
            # The connection of a body that is whole is kept.
            response.close()

    async def _get(self, path: str, limit_s: float, limit_bytes: int) -> tuple[int, bytes]:
        return await self._request("GET", path, limit_s, limit_bytes, {}, None)

    async def _request(
        self,
        method: str,
        path: str,
        limit_s: float,
        limit_bytes: int,
        headers: dict[str, str],
        body: bytes | None,
    ) -> tuple[int, bytes]:
        """A request of our own: status and body; `EngineError` when there is no answer in time."""
        if self._api_key is not None:
            headers["authorization"] = f"Bearer {self._api_key}"
        try:
            async with asyncio.timeout(limit_s):
                response = await self._live.request(method, path, headers, body or b"")
                with closing(response):
                    return response.status, await read_whole(response, limit_bytes)
        except TimeoutError:
            raise _LateError(f"{self.base}{path} did not answer within {limit_s:g} s.") from None
        except OSError as error:
            raise EngineError(f"{self.base} cannot be reached: {_reason(error)}") from None

    async def _refuses_options(self, answer: Answer) -> bool:
        """Whether a 400 is about the usage that we asked for; the answer stays readable."""
        raw = b"".join([chunk async for chunk in answer.chunks])
        answer.chunks = OneBody(raw)
        return b"stream_options" in raw or b"include_usage" in raw

    @property
    def _live(self) -> HttpClient:
        if self._http is None:
            raise EngineError(f"The connection to {self.base} was not started, or is closed.")
        return self._http


class _LateError(EngineError):
    """The server took a request of ours and did not answer in time."""


class _Ticket:
    """One request of ours on the upstream; ends once."""

    def __init__(self, accounting: Accounting, progress: Progress, began_s: float) -> None:
        self.progress = progress
        self._began_s = began_s
        self._end: Callable[[Progress, float], None] | None = accounting.ended
        accounting.began(progress)
        self._accounting = accounting

    def end(self) -> None:
        """Counts it out, and in with what was seen of it."""
        end, self._end = self._end, None
        if end is not None:
            self._accounting.in_flight -= 1
            end(self.progress, self._began_s)


def _outgoing(call: Call, model: str | None, *, usage: bool) -> tuple[bytes, bool]:
    """The call's body under the server's own name of the model, and whether it asks for usage."""
    if not call.content_type.lower().startswith(forms.CONTENT_TYPE):
        return outgoing(call.body, model, usage=usage)
    body = call.body if model is None else forms.with_field(call.body, call.content_type, "model", model)
    return body, False


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
