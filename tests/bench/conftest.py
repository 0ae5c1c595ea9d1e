"""A small OpenAI-shaped server on a thread of its own, scripted by the model's name."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web


class StubServer:
    """Answers completions of any length at once; `seen` holds the bodies it was sent.

    Models: `refused` answers 429, `picky` 400, `cut` ends the stream early, `broken` sends an error
    event, `garbled` an event that is no JSON, `mute` an empty answer, `silent` reports no usage, `short`
    stops one token early, `hangup` closes the connection. `meet(n)` holds every answer back until n
    requests are there.
    """

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.qualities: dict[str, float | None] | None = {"fast": 0.7, "accurate": 1.0}
        self.tokens_per_word = 1
        self.url = ""
        self._wanted = 0
        self._loop = asyncio.new_event_loop()
        self._met = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        # Answers that are still held back end first.
        self._loop.call_soon_threadsafe(self._met.set)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def meet(self, requests: int) -> None:
        self._wanted = len(self.seen) + requests

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_post("/v1/completions", self._answer)
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/optimization/ensemble", self._ensemble)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _models(self, _request: web.Request) -> web.Response:
        names = (
            "auto",
            "fast",
            "accurate",
            "refused",
            "picky",
            "cut",
            "broken",
            "garbled",
            "mute",
            "silent",
            "short",
            "hangup",
        )
        return web.json_response({"object": "list", "data": [{"id": name} for name in names]})

    async def _ensemble(self, _request: web.Request) -> web.Response:
        if self.qualities is None:
            return web.json_response({"error": {"message": "no such path"}}, status=404)
        models = [{"model_id": name, "quality": quality} for name, quality in self.qualities.items()]
        return web.json_response({"strategy": "adaptive", "models": models, "standby": []})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if len(self.seen) < self._wanted:
            await asyncio.wait_for(self._met.wait(), 10)
        self._met.set()
        model = body["model"]
        if model == "refused":
            return web.json_response({"error": {"message": "full"}}, status=429)
        if model == "picky":
            return web.json_response({"error": {"message": "no such field: min_tokens"}}, status=400)
        if model == "hangup":
            assert request.transport is not None
            request.transport.abort()
        member = "accurate" if model == "auto" else model
        if not body.get("stream"):
            usage = {"prompt_tokens": self._length(body), "completion_tokens": body["max_tokens"]}
            return web.json_response({"choices": [{"text": "x"}], "usage": usage})
        response = web.StreamResponse(
            headers={
                "content-type": "text/event-stream",
                "x-loadwise-member": member,
                "x-loadwise-strategy": "balanced",
                "x-loadwise-reason": "named",
            }
        )
        await response.prepare(request)
        for event in self._events(body):
            await response.write(f"data: {event}\n\n".encode())
        return response

    def _events(self, body: dict[str, Any]) -> Iterator[str]:
        model, wanted = body["model"], body["max_tokens"]
        if model == "garbled":
            yield "{no json"
            return
        made = 0 if model == "mute" else wanted - 1 if model in {"cut", "short"} else wanted
        for _ in range(made):
            content = {"delta": {"content": "x"}} if "messages" in body else {"text": "x"}
            yield json.dumps({"model": "m", "choices": [{"index": 0, "finish_reason": None, **content}]})
        if model == "broken":
            yield json.dumps({"error": {"message": "engine died", "type": "server_error"}})
        if model == "cut":
            return
        if model != "silent":
            usage = {"prompt_tokens": self._length(body), "completion_tokens": made}
            yield json.dumps({"choices": [], "usage": usage})
        yield "[DONE]"

    def _length(self, body: dict[str, Any]) -> int:
        prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        return len(prompt) if isinstance(prompt, list) else len(prompt.split()) * self.tokens_per_word


@pytest.fixture
def stub() -> Iterator[StubServer]:
    server = StubServer()
    server.start()
    yield server
    server.stop()
