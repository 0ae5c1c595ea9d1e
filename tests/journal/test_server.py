"""The journal of a whole server over real sockets: feedback by key, stories, no prompt and no key in it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from loadwise.app.server import composed
from loadwise.settings import load_settings
from loadwise.telemetry.journal.explain import explain
from loadwise.telemetry.journal.reader import Reader
from loadwise.telemetry.journal.replay import replay
from loadwise.testing import StubUpstream

CANARY = "canary-7f3a"
KEYS = {"blue": ["infer", "feedback"], "red": ["infer", "feedback"], "plain": ["infer"]}
FEEDBACK = "/v1/optimization/feedback"


def secret(name: str) -> str:
    return f"{CANARY}-key-{name}"


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret(name)}"}


@pytest.fixture
async def upstream() -> AsyncIterator[StubUpstream]:
    server = StubUpstream()
    await server.start()
    yield server
    await server.close()


@asynccontextmanager
async def serving(state: Path, upstream: StubUpstream, **more: object) -> AsyncIterator[str]:
    keys = [
        {"id": name, "sha256": hashlib.sha256(secret(name).encode()).hexdigest(), "scopes": scopes,
         "tenant": name}
        for name, scopes in KEYS.items()
    ]  # fmt: skip
    settings = load_settings(
        port=0, state_dir=state, cache_dir=state / "cache", upstreams={"eu": {"url": upstream.url}},
        keys=keys, admin_key=f"{CANARY}-admin", **more,
    )  # fmt: skip
    async with composed(settings) as server:
        tasks = [asyncio.create_task(listener.run()) for listener in server.listeners]
        await server.optimization.optimizer.start_optimization()
        try:
            yield f"http://127.0.0.1:{server.listeners[0].port}"
        finally:
            for listener in server.listeners:
                listener.stop()
            await asyncio.gather(*tasks)


async def asked(client: aiohttp.ClientSession, address: str, name: str) -> str:
    """The request id of an answer."""
    body = {
        "model": "auto", "max_tokens": 4, "user": f"{CANARY}-user",
        "messages": [
            {"role": "user", "content": f"{CANARY} prompt"}, {"role": "assistant", "content": CANARY},
            {"role": "user", "content": "go on"},
        ],
    }  # fmt: skip
    headers = {**bearer(name), "x-session-id": f"{CANARY}-session"}
    async with client.post(f"{address}/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return answer.headers["x-request-id"]


async def gave(
    client: aiohttp.ClientSession, address: str, headers: dict[str, str], **body: object
) -> tuple[int, dict[str, object]]:
    async with client.post(address + FEEDBACK, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_feedback_needs_its_scope_and_its_tenant(tmp_path: Path, upstream: StubUpstream) -> None:
    admin = {"x-loadwise-admin-key": f"{CANARY}-admin"}
    async with serving(tmp_path, upstream) as address, aiohttp.ClientSession() as client:
        request_id = await asked(client, address, "blue")
        body = {"request_id": request_id, "score": 0.5, "source": "judge"}
        assert (await gave(client, address, {}, **body))[0] == 401
        assert (await gave(client, address, bearer("plain"), **body))[0] == 403
        assert (await gave(client, address, bearer("red"), **body))[0] == 404
        status, said = await gave(client, address, bearer("blue"), **body)
        assert (status, said["status"], said["member"]) == (200, "recorded", "eu")
        assert (await gave(client, address, admin, **body))[1]["status"] == "already_recorded"
        status, said = await gave(client, address, admin, **{**body, "score": 0.6})
        assert (status, said["error"]["code"]) == (409, "feedback_given")  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"score": 1.5}, "score"),
        ({"score": "good"}, "score"),
        ({"score": None}, "score"),
        ({"source": "two words"}, "source"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": 5}, "request_id"),
        ({"extra": 1}, None),
    ],
)
async def test_wrong_feedback_is_refused_by_field(
    tmp_path: Path, upstream: StubUpstream, change: dict[str, object], param: str | None
) -> None:
    body = {"request_id": "r", "score": 0.5, "source": "judge", **change}
    async with serving(tmp_path, upstream) as address, aiohttp.ClientSession() as client:
        status, said = await gave(client, address, bearer("blue"), **body)
    assert status == 400
    assert said["error"]["param"] == param  # type: ignore[index]


async def test_no_prompt_and_no_key_is_in_the_journal(tmp_path: Path, upstream: StubUpstream) -> None:
    async with serving(tmp_path, upstream) as address, aiohttp.ClientSession() as client:
        request_id = await asked(client, address, "blue")
        body = {"request_id": request_id, "score": 0.0, "source": "judge"}
        assert (await gave(client, address, bearer("blue"), **body))[0] == 200
    connection = sqlite3.connect(tmp_path / "journal" / "journal.sqlite3")
    bodies = [zlib.decompress(body) for (body,) in connection.execute("SELECT body FROM batches")]
    bodies += [
        body for table in ("changes", "kept") for (body,) in connection.execute(f"SELECT body FROM {table}")
    ]
    connection.close()
    assert any(request_id.encode() in body for body in bodies)
    assert not any(CANARY.encode() in body for body in bodies)
    for path in (tmp_path / "journal").iterdir():
        assert CANARY.encode() not in path.read_bytes()


async def test_a_server_can_be_explained_and_replayed_while_it_runs_and_after(
    tmp_path: Path, upstream: StubUpstream
) -> None:
    async with serving(tmp_path, upstream) as address, aiohttp.ClientSession() as client:
        request_id = await asked(client, address, "blue")
        # Feedback is taken once everything before it is on disk.
        assert (await gave(client, address, bearer("blue"), request_id=request_id, score=1, source="me"))[
            0
        ] == 200
        running = await asyncio.to_thread(story_of, tmp_path, request_id)
    story = story_of(tmp_path, request_id)
    assert running["attempts"] == story["attempts"]
    with Reader(tmp_path) as reader:
        found = replay(reader.batches())
    assert story["attempts"][0]["facts"]["tenant"] == "blue"
    assert story["attempts"][0]["ended"]["ending"] == "succeeded"
    assert found.exact
    assert found.decisions >= 1
    assert found.steps >= 1


def story_of(state: Path, request_id: str) -> dict[str, Any]:
    with Reader(state) as reader:
        return explain(reader, request_id)


async def test_the_status_tells_of_the_journal(tmp_path: Path, upstream: StubUpstream) -> None:
    async with serving(tmp_path, upstream) as address, aiohttp.ClientSession() as client:
        admin = {"x-loadwise-admin-key": f"{CANARY}-admin"}
        change = {"hysteresis": 0.07}
        async with client.post(f"{address}/v1/optimization/configure", json=change, headers=admin) as answer:
            assert answer.status == 200
        async with client.get(f"{address}/v1/optimization/status", headers=admin) as answer:
            said = json.loads(await answer.text())
    assert said["journal"]["fault"] is None
    assert said["journal"]["dropped"] == 0
    assert said["journal"]["path"] == str(tmp_path / "journal")
    told = said["changes_last_hour"][-1]
    assert (told["kind"], told["after"], told["undo_body"]) == (
        "configuration", "hysteresis=0.07", {"hysteresis": 0.05},
    )  # fmt: skip


async def test_the_journal_can_be_off(tmp_path: Path, upstream: StubUpstream) -> None:
    async with (
        serving(tmp_path, upstream, journal={"enabled": False}) as address,
        aiohttp.ClientSession() as client,
    ):
        request_id = await asked(client, address, "blue")
        body = {"request_id": request_id, "score": 0.0, "source": "judge"}
        status, said = await gave(client, address, bearer("blue"), **body)
    assert (status, said["error"]["code"]) == (503, "journal_unavailable")  # type: ignore[index]
    assert not (tmp_path / "journal").exists()
