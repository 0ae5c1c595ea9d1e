"""The control plane inside somebody else's application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from loadwise import OptimizationConfig, OptimizationMiddleware, OptimizationServingMixin
from loadwise.app import setup_optimization_serving


class Engine:
    """An engine client that offers nothing."""


@pytest.fixture
async def application():
    app = FastAPI()
    mixin = await setup_optimization_serving(
        app, Engine(), optimization_config=OptimizationConfig(tuning_interval_sec=0.05), admin_key="admin"
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as client:
        yield mixin, client
    await mixin.optimizer.close()


async def test_the_routes_join_the_application(application) -> None:
    mixin, client = application
    assert isinstance(mixin, OptimizationServingMixin)
    for view in ("status", "metrics", "ensemble", "report", "dashboard"):
        answer = await client.get(f"/v1/optimization/{view}")
        assert answer.status_code == 200, view


async def test_changes_need_the_admin_key(application) -> None:
    _, client = application
    body = {"ensemble_strategy": "adaptive"}
    refused = await client.post("/v1/optimization/configure", json=body)
    assert refused.status_code in {401, 403}
    headers = {"x-loadwise-admin-key": "admin"}
    assert (await client.post("/v1/optimization/configure", json=body, headers=headers)).status_code == 200


async def test_without_an_admin_key_changes_are_refused_naming_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LOADWISE_ADMIN_KEY", raising=False)
    app = FastAPI()
    mixin = await setup_optimization_serving(app, Engine())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as client:
        refused = await client.post("/v1/optimization/stop")
    await mixin.optimizer.close()
    assert refused.status_code == 403
    assert "admin" in refused.json()["error"]["message"]


async def test_the_middleware_processes_requests_with_what_was_set_up(application) -> None:
    mixin, _ = application

    async def answer(model: object, request: dict[str, object]) -> str:
        return f"{model}: {request['prompt']}"

    middleware = OptimizationMiddleware(mixin)
    assert await middleware.process_request("model", {"prompt": "hi"}, answer) == "model: hi"


async def test_the_optimizer_stops_with_an_application_that_has_its_own_lifespan() -> None:
    lived: list[str] = []

    @asynccontextmanager
    async def own(_: FastAPI) -> AsyncIterator[None]:
        lived.append("began")
        yield
        lived.append("ended")

    app = FastAPI(lifespan=own)
    mixin = await setup_optimization_serving(app, Engine())
    async with app.router.lifespan_context(app):
        assert mixin.optimizer.director.running
    assert not mixin.optimizer.director.running
    assert lived == ["began", "ended"]


async def test_reports_are_written_under_the_configured_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOADWISE_REPORT_DIR", str(tmp_path))
    app = FastAPI()
    mixin = await setup_optimization_serving(app, Engine())
    report = await mixin.get_performance_report(export_file=True)
    await mixin.optimizer.close()
    assert any(tmp_path.iterdir())
    assert str(tmp_path) in str(report)
