"""The control plane: the origin's nine routes and the dashboard, as documented in its OpenAPI."""

from __future__ import annotations

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from loadwise.clock import SystemClock
from loadwise.gateway.auth import Guard
from loadwise.gateway.build import control_app
from loadwise.gateway.control_plane import include_control_plane
from loadwise.gateway.json_types import inlined
from loadwise.gateway.routes import CONTROL_ROUTES
from loadwise.gateway.serving import OptimizationServingMixin
from loadwise.ports import AddModel, Configure, Recompile, Start, Stop
from loadwise.settings import OptimizationConfig
from loadwise.testing.director_fakes import FakeControl

BASE = "/v1/optimization"
ORIGINS_BODY = {
    "enable_torch_compile": True,
    "compile_mode": "max-autotune",
    "enable_dynamic_tuning": True,
    "tuning_interval_sec": 30.0,
    "enable_ensemble": True,
    "max_ensemble_size": 3,
    "ensemble_strategy": "adaptive",
}


def open_app() -> FastAPI:
    guard = Guard.for_plugin("root")
    # A server that stops ends its streams of events, which tests could not read to their end otherwise.
    return control_app(OptimizationServingMixin(FakeControl(SystemClock())), guard, lambda: True)


documented = open_app()
documented.add_api_route("/openapi.json", documented.openapi, include_in_schema=False)
schema = schemathesis.openapi.from_asgi("/openapi.json", documented)


@schema.parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_no_input_breaks_the_control_plane_or_leaves_its_description(case):
    case.call_and_validate(
        headers={"x-loadwise-admin-key": "root"},
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
            negative_data_rejection,
            unsupported_method,
        ],
    )


async def test_configure_takes_the_origins_body(site_of):
    site = site_of()
    reply = await site.ask("POST", f"{BASE}/configure", ORIGINS_BODY)
    assert reply.status == 200
    assert site.control.config.ensemble_strategy == "adaptive"
    assert site.control.commands == [Configure(changes=ORIGINS_BODY)]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tuning_interval_sec": 0.01}, "tuning_interval_sec"),
        ({"compile_mode": "fastest"}, "compile_mode"),
        ({"unknown": 1}, "unknown"),
        ({"tuning_interval_sec": True}, "tuning_interval_sec"),
        ({"max_ensemble_size": "3"}, "max_ensemble_size"),
        ({"objectives": {"time_to_first_token_s": False}}, "objectives.time_to_first_token_s"),
        ({"ranges": {"top_k": {"low": "1", "high": 2}}}, "ranges.top_k.low"),
        ({"ceilings": {"max_tokens": None}}, "ceilings.max_tokens"),
        ({"max_ensemble_size": 0, "compile_mode": "max-autotune"}, "max_ensemble_size"),
    ],
)
async def test_a_wrong_setting_is_named_and_nothing_changes(site_of, changes, param):
    site = site_of()
    reply = await site.ask("POST", f"{BASE}/configure", changes)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert reply.error["code"] == "invalid_configuration"
    assert site.control.config == OptimizationConfig()


async def test_a_dry_run_changes_nothing(site_of):
    site = site_of()
    reply = await site.ask("POST", f"{BASE}/configure", {"max_ensemble_size": 5}, query="dry_run=true")
    assert reply.status == 200
    assert site.control.config.max_ensemble_size == 3


@pytest.mark.parametrize(
    ("path", "query", "command"),
    [
        ("/start", "", Start()),
        ("/stop", "", Stop()),
        ("/ensemble/add_model", "model_id=fast", AddModel(model_id="fast", initial_weight=1.0)),
        (
            "/ensemble/add_model",
            "model_id=fast&initial_weight=0.9",
            AddModel(model_id="fast", initial_weight=0.9),
        ),
        ("/force_recompile", "", Recompile(model_id=None)),
        ("/force_recompile", "model_id=accurate", Recompile(model_id="accurate")),
    ],
)
async def test_commands_have_the_origins_parameters_and_defaults(site_of, path, query, command):
    site = site_of()
    assert (await site.ask("POST", BASE + path, query=query)).status == 200
    assert site.control.commands == [command]


@pytest.mark.parametrize(
    ("path", "query", "status", "param"),
    [
        ("/ensemble/add_model", "", 400, "model_id"),
        ("/ensemble/add_model", "model_id=absent", 404, None),
        ("/ensemble/add_model", "model_id=fast&initial_weight=0", 400, "initial_weight"),
        ("/ensemble/add_model", "model_id=fast&initial_weight=nan", 400, "initial_weight"),
        ("/force_recompile", "model_id=absent", 404, None),
        ("/configure", "dry_run=perhaps", 400, "dry_run"),
        # Passed over, it would make the change that was only to be looked at.
        ("/configure", "dryrun=true", 400, "dryrun"),
        ("/stop", "for=5m", 400, "for"),
    ],
)
async def test_wrong_parameters_are_named(site_of, path, query, status, param):
    reply = await site_of().ask("POST", BASE + path, b"{}", query=query)
    assert (reply.status, reply.error["param"]) == (status, param)


async def test_a_full_ensemble_names_its_limit(site_of):
    site = site_of()
    await site.ask("POST", f"{BASE}/configure", {"max_ensemble_size": 1})
    await site.ask("POST", f"{BASE}/ensemble/add_model", query="model_id=fast")
    reply = await site.ask("POST", f"{BASE}/ensemble/add_model", query="model_id=spare")
    assert reply.status == 409
    assert "max_ensemble_size" in reply.error["message"]


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/status", {"config", "config_version"}),
        ("/metrics", {"cpu_usage_percent", "queue_depth", "overall_load_score", "absent"}),
        ("/ensemble", {"strategy", "max_ensemble_size", "models", "standby"}),
        ("/report", {"grade"}),
        ("/dashboard", {"timestamp", "system_status", "optimization_metrics", "ensemble_status"}),
    ],
)
async def test_views_have_their_documented_keys(site_of, path, keys):
    reply = await site_of().ask("GET", BASE + path)
    assert reply.status == 200
    assert keys <= set(reply.json())
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize(("query", "exported"), [("", False), ("export_file=true", True)])
async def test_a_report_is_written_only_when_asked(site_of, query, exported):
    reply = await site_of().ask("GET", f"{BASE}/report", query=query)
    assert reply.json()["exported"] is exported


async def test_figures_that_are_no_numbers_are_null(site_of):
    site = site_of()
    site.control.dashboard_extra = {"load_score": float("nan")}
    reply = await site.ask("GET", f"{BASE}/dashboard")
    assert reply.json()["load_score"] is None


async def test_a_bare_mixin_says_how_to_set_it_up(site_of):
    app = FastAPI()
    include_control_plane(app, OptimizationServingMixin(), Guard.for_plugin())
    site = site_of()
    site.app = app
    reply = await site.ask("GET", f"{BASE}/status")
    assert reply.status == 503
    assert "setup_optimization_serving" in reply.error["message"]


async def test_the_description_names_every_route_and_the_page_needs_no_other_host(site_of):
    site = site_of()
    document = (await site.ask("GET", "/openapi.json")).json()
    page = await site.ask("GET", "/docs")
    for path in document["paths"]:
        assert path.encode() in page.body
    described = {path for path in document["paths"] if path.startswith(BASE)}
    assert described == {route.path for route in CONTROL_ROUTES}
    assert "/v1/chat/completions" in document["paths"]
    assert b"http://" not in page.body
    assert b"https://" not in page.body
    assert b"<script" not in page.body
    assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_configures_schema_lists_the_origins_eleven_settings(site_of):
    document = (await site_of().ask("GET", "/openapi.json")).json()
    body = document["paths"][f"{BASE}/configure"]["post"]["requestBody"]
    properties = body["content"]["application/json"]["schema"]["properties"]
    assert set(ORIGINS_BODY) <= set(properties)
    assert properties["compile_mode"]["enum"] == ["default", "reduce-overhead", "max-autotune"]


def test_references_are_put_where_they_are_used():
    schema = {"$defs": {"A": {"type": "object"}}, "properties": {"a": {"$ref": "#/$defs/A", "default": 1}}}
    assert inlined(schema) == {"properties": {"a": {"type": "object", "default": 1}}}


async def test_metrics_version_and_health(site_of):
    site = site_of()
    metrics = await site.ask("GET", "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert metrics.body.endswith(b"\n")
    assert (await site.ask("GET", "/version")).json()["version"]
    assert (await site.ask("GET", "/health")).status == 200
    assert (await site.ask("GET", "/health/readiness")).json() == {"status": "ready"}


async def test_without_models_the_server_is_not_ready(site_of):
    site = site_of()
    site.director.engines.clear()
    assert (await site.ask("GET", "/health/readiness")).status == 503
    assert (await site.ask("GET", "/health")).status == 200
