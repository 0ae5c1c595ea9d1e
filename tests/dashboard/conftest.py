"""A real server with a stub upstream, and a real headless Chromium that looks at its page."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from loadwise.app.server import Server, composed
from loadwise.settings import load_settings
from loadwise.testing import StubUpstream

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_S = 20.0
CHECKS = Path(__file__).with_name("checks.js").read_text(encoding="utf-8")


def _lacking() -> str | None:
    """What these tests need and this machine lacks; None for nothing."""
    if CHROMIUM is None:
        return "no chromium here: sudo apt-get install chromium"
    if find_spec("playwright") is None:
        return "playwright is not installed: pip install playwright"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _lacking()
    if reason is None:
        return
    skip = pytest.mark.skip(reason=reason)
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip)


@dataclass
class Site:
    """A running server and its stub."""

    server: Server
    url: str
    stub: StubUpstream

    async def answer(self, count: int = 20) -> None:
        """So many requests were answered."""
        body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], "stream": True}
        async with aiohttp.ClientSession() as client:
            for _ in range(count):
                async with client.post(self.url + "/v1/chat/completions", json=body) as answer:
                    await answer.read()


@dataclass
class Viewer:
    """A page in the browser, with what it complained of and what it asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    async def text(self, selector: str) -> str:
        return str(await self.page.inner_text(selector))

    async def until(self, condition: str) -> None:
        """Waits until an expression of the page is true."""
        # Playwright's own waiting evaluates text inside the page, which the page's policy forbids.
        async with asyncio.timeout(PATIENCE_S):
            while not await self.page.evaluate(condition):
                await asyncio.sleep(0.05)

    async def check(self, name: str) -> list[str]:
        """What a function of checks.js finds wrong."""
        return list(await self.page.evaluate(f"() => {{ {CHECKS}; return {name}(); }}"))

    async def live(self) -> None:
        await self.until("document.body.dataset.connection === 'live'")
        await self.until("document.querySelectorAll('#members tbody tr').length > 0")


@pytest.fixture
def serving(tmp_path: Path) -> Callable[..., Any]:
    """Makes a running site: `async with serving(api_key=...) as site`."""

    @asynccontextmanager
    async def made(port: int = 0, **settings: Any) -> AsyncIterator[Site]:
        stub = StubUpstream()
        await stub.start()
        values = {"upstreams": {"eu": {"url": stub.url, "quality": 0.9}}, **settings}
        loaded = load_settings(
            port=port, state_dir=tmp_path / "state", cache_dir=tmp_path / "cache", **values
        )
        try:
            async with composed(loaded) as server:
                listener = server.listeners[0]
                running = asyncio.create_task(listener.run())
                await server.optimization.optimizer.start_optimization()
                try:
                    yield Site(server, f"http://127.0.0.1:{listener.port}", stub)
                finally:
                    listener.stop()
                    await running
        finally:
            await stub.close()

    return made


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    from playwright.async_api import async_playwright

    async with async_playwright() as driver:
        opened = await driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield opened
        finally:
            await opened.close()


@pytest.fixture
async def look(browser: Any) -> AsyncIterator[Callable[..., Any]]:
    """Opens a server's dashboard: `viewer = await look(url, width=390, scheme="dark")`."""
    contexts = []

    async def opened(url: str, *, width: int = 1280, height: int = 900, scheme: str = "light") -> Viewer:
        context = await browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        viewer = Viewer(await context.new_page())
        viewer.page.on("pageerror", lambda error: viewer.complaints.append(str(error)))
        viewer.page.on("console", lambda said: said.type == "error" and viewer.complaints.append(said.text))
        viewer.page.on("request", lambda asked: viewer.hosts.add(asked.url.split("/")[2]))
        await viewer.page.goto(url + "/dashboard")
        return viewer

    yield opened
    for context in contexts:
        await context.close()
