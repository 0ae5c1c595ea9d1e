"""Behind LiteLLM's proxy: two servers of ours and one of it, configured as docs/litellm.md says."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIStatusError, AsyncOpenAI

from loadwise.testing.upstream import Received, StubUpstream

pytestmark = [pytest.mark.gateways, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
GATEWAYS = Path(os.environ.get("LOADWISE_GATEWAYS", ROOT / ".cache" / "gateways")).resolve()
CHAT = {"model": "auto", "max_tokens": 4, "messages": [{"role": "user", "content": "Why?"}]}


class Flaky(StubUpstream):
    """An upstream of which every `fails`th answer is an error (0: none is), and that waits for `held`."""

    fails = 0
    asked = 0
    held: asyncio.Event | None = None

    async def _answer(self, request: Received, connection: Any) -> None:
        if self.fails and request.method == "POST":
            self.asked += 1
            self.behaviour.status = 500 if self.asked % self.fails == 0 else 200
        if self.held is not None and request.method == "POST":
            await self.held.wait()
        await super()._answer(request, connection)

    @property
    def attempts(self) -> int:
        return sum(request.method == "POST" for request in self.received)


@dataclass
class Site:
    """LiteLLM's proxy before two servers of ours, which share two upstreams."""

    proxy: str
    servers: list[str]
    upstreams: list[Flaky]

    @property
    def attempts(self) -> int:
        return sum(upstream.attempts for upstream in self.upstreams)


def configured(urls: list[str]) -> str:
    """The page's configuration with these addresses."""
    page = (ROOT / "docs/litellm.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    for port, url in zip((2240, 2241), urls, strict=True):
        assert f"http://127.0.0.1:{port}" in text
        text = text.replace(f"http://127.0.0.1:{port}", url)
    return str(text)


def litellm(servers: Any, urls: list[str], folder: Path) -> Any:
    venv, port = GATEWAYS / "litellm", servers.free_port()
    (folder / "litellm.yaml").write_text(configured(urls))
    return servers.Server(
        name="litellm",
        command=[
            *(str(venv / "bin/litellm"), "--config", str(folder / "litellm.yaml")),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        url=f"http://127.0.0.1:{port}",
        log=folder / "litellm.log",
        env={
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
            "PYTHONPATH": "",
        },
        ready_path="/health/liveliness",
        start_timeout_s=200.0,
    )


@pytest.fixture
async def site(servers: Any, gateway: Any, tmp_path: Path) -> AsyncIterator[Site]:
    if not (GATEWAYS / "litellm/bin/litellm").exists():
        pytest.skip(f"LiteLLM is not installed in {GATEWAYS}: tools/gateways/build.sh")
    async with AsyncExitStack() as upstreams, AsyncExitStack() as running:
        stubs = [Flaky(keep=10_000) for _ in range(2)]
        for stub in stubs:
            await stub.start()
            upstreams.push_async_callback(stub.close)
        (settings := tmp_path / "loadwise.yaml").write_text(served(stubs))
        ours = [gateway("--config", str(settings)) for _ in range(2)]
        for server in ours:
            await asyncio.to_thread(running.enter_context, server)
        urls = [server.url for server in ours]
        proxy = await asyncio.to_thread(running.enter_context, litellm(servers, urls, tmp_path))
        yield Site(proxy.url, urls, stubs)


def served(stubs: list[Flaky]) -> str:
    """The settings of each server of ours: at most four requests at once."""
    urls = f"url: '{stubs[0].url}', replicas: ['{stubs[1].url}']"
    limits = "limits: {max_concurrent_requests: 4}"
    return f"upstreams: {{stub: {{{urls}, probe: false, {limits}}}}}\noptimization: {{refuse_late: false}}\n"


async def status(client: httpx.AsyncClient, url: str) -> int:
    return (await client.post(f"{url}/v1/chat/completions", json=CHAT)).status_code


async def test_shed_load_cools_down_no_deployment_for_others(site: Site) -> None:
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        for upstream in site.upstreams:
            upstream.behaviour.status = 429
        shed = [await status(client, site.proxy) for _ in range(4)]
        for upstream in site.upstreams:
            upstream.behaviour.status = 200
        others = [await status(client, site.proxy) for _ in range(6)]
    assert shed == [429] * 4
    assert others == [200] * 6


async def everybody_is_answered_by_a_fifth_more_at_most(site: Site) -> None:
    before, asked = site.attempts, 100
    async with AsyncOpenAI(base_url=f"{site.proxy}/v1", api_key="none", max_retries=2) as client:
        for _ in range(asked // 4):
            answers = await asyncio.gather(*(client.chat.completions.create(**CHAT) for _ in range(4)))
            assert all(answer.choices for answer in answers)
    assert asked <= site.attempts - before <= 1.2 * asked


async def test_with_the_retries_of_every_layer_an_upstream_is_asked_a_fifth_more_at_most(site: Site) -> None:
    for upstream in site.upstreams:
        upstream.fails = 10
    await everybody_is_answered_by_a_fifth_more_at_most(site)


async def test_where_one_of_two_upstreams_fails_everybody_is_answered_by_a_fifth_more_at_most(
    site: Site,
) -> None:
    site.upstreams[0].fails = 1
    await everybody_is_answered_by_a_fifth_more_at_most(site)


async def test_where_every_upstream_fails_they_are_asked_a_fifth_more_at_most_and_answer_again_once_they_can(
    site: Site,
) -> None:
    for upstream in site.upstreams:
        upstream.fails = 1
    before, asked = site.attempts, 40
    async with AsyncOpenAI(base_url=f"{site.proxy}/v1", api_key="none", max_retries=2) as client:
        for _ in range(asked // 4):
            failures = await asyncio.gather(*(failure(client) for _ in range(4)))
            assert None not in failures
        assert site.attempts - before <= 1.2 * asked
        for upstream in site.upstreams:
            upstream.fails, upstream.behaviour.status = 0, 200
        async with asyncio.timeout(30):
            while await failure(client) is not None:
                await asyncio.sleep(0.1)
        assert [await failure(client) for _ in range(10)] == [None] * 10


async def failure(client: AsyncOpenAI) -> int | None:
    """The status that a client's request ends with after all its retries; None where it is answered."""
    try:
        await client.chat.completions.create(**CHAT)
    except APIStatusError as error:
        return error.status_code
    return None


async def test_what_we_refuse_ourselves_cools_down_no_deployment_and_reaches_no_upstream(site: Site) -> None:
    holding = asyncio.Event()
    for upstream in site.upstreams:
        upstream.held = holding
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        places = [url for url in site.servers for _ in range(4)]
        held = [asyncio.create_task(status(client, url)) for url in places]
        async with asyncio.timeout(30):
            while site.attempts < len(held):
                await asyncio.sleep(0.02)
        shed = [await status(client, site.proxy) for _ in range(6)]
        assert (shed, site.attempts) == ([429] * 6, len(held))
        holding.set()
        assert await asyncio.gather(*held) == [200] * len(held)
        others = [await status(client, site.proxy) for _ in range(10)]
    assert others == [200] * 10
    assert site.attempts == len(held) + len(others)
