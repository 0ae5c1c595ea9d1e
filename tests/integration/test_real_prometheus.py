"""A real Prometheus scrapes the gateway, takes the generated rules, and agrees with what the clients did."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from loadwise.app.server import composed
from loadwise.decision.alert_rules import RULES
from loadwise.settings import load_settings
from loadwise.testing import StubUpstream

PROMETHEUS = shutil.which("prometheus")
RULE_FILE = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "loadwise.rules.yml"
PATIENCE_S = 60.0
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus: apt-get install prometheus")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[str]:
    """Prometheus with our rules, scraping the target every second; its address."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULE_FILE)],
        "scrape_configs": [{"job_name": "loadwise", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    assert PROMETHEUS is not None
    process = await asyncio.create_subprocess_exec(
        PROMETHEUS, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}", stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        await process.wait()


async def asked(client: aiohttp.ClientSession, path: str, **query: str) -> Any:
    """The data of an answer of Prometheus' API, None while it does not listen yet."""
    try:
        async with client.get(f"/api/v1/{path}", params=query) as answer:
            return (await answer.json())["data"] if answer.status == 200 else None
    except aiohttp.ClientConnectionError:
        return None


async def value(client: aiohttp.ClientSession, query: str) -> float | None:
    found = await asked(client, "query", query=query)
    return float(found["result"][0]["value"][1]) if found and found["result"] else None


async def test_prometheus_scrapes_counts_and_evaluates(tmp_path: Path) -> None:
    stub = StubUpstream()
    settings = load_settings(
        port=0, upstreams={"eu": {"url": await stub.start()}}, state_dir=tmp_path / "state",
        cache_dir=tmp_path / "cache",
    )  # fmt: skip
    async with composed(settings) as server:
        running = asyncio.create_task(server.listeners[0].run())
        await server.optimization.optimizer.start_optimization()
        target = f"127.0.0.1:{server.listeners[0].port}"
        body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
        async with aiohttp.ClientSession(f"http://{target}") as client:
            for _ in range(7):
                async with client.post("/v1/chat/completions", json=body) as answer:
                    assert answer.status == 200
        async with prometheus(tmp_path, target) as address, aiohttp.ClientSession(address) as client:
            async with asyncio.timeout(PATIENCE_S):
                while await value(client, 'sum(loadwise_requests_total{ending="succeeded"})') != 7:
                    await asyncio.sleep(0.1)
                while not (groups := (await asked(client, "rules") or {}).get("groups")) or any(
                    rule["health"] == "unknown" for rule in groups[0]["rules"]
                ):
                    await asyncio.sleep(0.1)
            assert [rule["name"] for rule in groups[0]["rules"]] == [f"loadwise_{r.name}" for r in RULES]
            assert {rule["health"] for rule in groups[0]["rules"]} == {"ok"}
            assert await value(client, 'count(ALERTS{alertstate="firing"})') is None
            assert await value(client, 'sum(loadwise_member_active{member="eu"})') == 1
        server.listeners[0].stop()
        await running
    await stub.close()
