"""Who may do what, over the route table: a new route without an entry here fails."""

from __future__ import annotations

import hashlib

import pytest

from loadwise.errors import RequestError
from loadwise.gateway.auth import Guard, is_loopback
from loadwise.gateway.build import CONTROL_ONLY, DATA_ONLY, build_admin_gateway, build_gateway
from loadwise.gateway.routes import CONTROL_ROUTES, DATA_ROUTES, PAGE_ROUTES, Plane
from loadwise.settings import KeySettings, Settings

ALL_ROUTES = (*DATA_ROUTES, *PAGE_ROUTES, *CONTROL_ROUTES)
OK, NO_KEY, NOT_ALLOWED = "ok", 401, 403


def bearer(key: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {key}")


def admin(key: str) -> tuple[str, str]:
    return ("x-loadwise-admin-key", key)


def key(name: str, *scopes: str, **more) -> KeySettings:
    return KeySettings(
        id=name, sha256=hashlib.sha256(name.encode()).hexdigest(), scopes=frozenset(scopes), **more
    )


KEYED = Settings(
    api_key="data",
    admin_key="root",
    keys=(
        key("infer-only", "infer", tenant="blue", optimize=False, ceilings={"max_tokens": 5}),
        key("metrics-only", "metrics"),
        key("reader", "admin:read"),
        key("writer", "admin:write"),
        key("judge", "feedback"),
    ),
)
WHO = {
    "none": [],
    "wrong": [bearer("guess")],
    "wrong admin": [bearer("data"), admin("guess")],
    "basic": [("authorization", "Basic ZGF0YQ==")],
    "the admin key as bearer": [bearer("root")],
    "the data key as admin": [admin("data")],
    "data": [bearer("data")],
    "infer": [bearer("infer-only")],
    "metrics": [bearer("metrics-only")],
    "reader": [bearer("reader")],
    "writer": [bearer("writer")],
    "judge": [bearer("judge")],
    "admin": [admin("root")],
    "both": [bearer("infer-only"), admin("root")],
}
STRANGERS = ("none", "wrong", "wrong admin", "basic", "the admin key as bearer", "the data key as admin")
# Scope that a route needs -> who gets through; strangers get 401, all others 403.
THROUGH = {
    None: tuple(WHO),
    "infer": ("data", "infer", "admin", "both"),
    "metrics": ("data", "metrics", "admin", "both"),
    "admin:read": ("data", "reader", "admin", "both"),
    "admin:write": ("writer", "admin", "both"),
    "feedback": ("judge", "admin", "both"),
}
# Each route's scope, said here once more: the route table must agree.
NEEDS = {
    "POST /v1/chat/completions": "infer",
    "POST /v1/completions": "infer",
    "POST /v1/responses": "infer",
    "POST /v1/messages": "infer",
    "POST /v1/embeddings": "infer",
    "POST /v1/audio/speech": "infer",
    "POST /v1/audio/transcriptions": "infer",
    "POST /v1/audio/translations": "infer",
    "POST /v1/images/generations": "infer",
    "POST /v1/images/edits": "infer",
    "GET /v1/models": "infer",
    "GET /v1/models/{model}": "infer",
    "GET /version": "infer",
    "GET /health": None,
    "GET /health/readiness": None,
    "GET /metrics": "metrics",
    "GET /docs": "admin:read",
    "GET /openapi.json": "admin:read",
    "POST /v1/optimization/configure": "admin:write",
    "POST /v1/optimization/start": "admin:write",
    "POST /v1/optimization/stop": "admin:write",
    "GET /v1/optimization/status": "admin:read",
    "GET /v1/optimization/metrics": "admin:read",
    "GET /v1/optimization/ensemble": "admin:read",
    "GET /v1/optimization/report": "admin:read",
    "GET /v1/optimization/events": "admin:read",
    "GET /v1/optimization/dashboard": "admin:read",
    "POST /v1/optimization/ensemble/add_model": "admin:write",
    "POST /v1/optimization/force_recompile": "admin:write",
    "POST /v1/optimization/feedback": "feedback",
    "GET /dashboard": None,
    "GET /dashboard/app.js": None,
    "GET /dashboard/charts.js": None,
    "GET /dashboard/control.js": None,
    "GET /dashboard/dom.js": None,
    "GET /dashboard/feed.js": None,
    "GET /dashboard/format.js": None,
    "GET /dashboard/mark.svg": None,
    "GET /dashboard/panels.js": None,
    "GET /dashboard/parts.css": None,
    "GET /dashboard/style.css": None,
    "GET /dashboard/verdict.js": None,
}


@pytest.fixture(scope="module")
def keyed(site_of):
    return site_of(KEYED)


def test_every_route_has_its_entry():
    assert {f"{route.method} {route.path}": route.scope for route in ALL_ROUTES} == NEEDS


def test_every_served_path_is_in_the_table(keyed):
    served = {f"{method} {path}" for path, methods in keyed.app.table.items() for method in methods}
    assert {name for name in served if not name.startswith("HEAD ")} == set(NEEDS)


def test_head_is_what_get_is_but_for_the_control_plane(keyed):
    for path, methods in keyed.app.table.items():
        assert methods.get("HEAD") == (None if path.startswith("/v1/optimization/") else methods.get("GET"))


async def status(site, route, headers) -> int:
    # A server that stops ends its streams of events, so that their answers end too.
    site.app.readiness.draining = True
    path = route.path.replace("{model}", "auto")
    return (await site.ask(route.method, path, b"{}", headers=headers)).status


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("route", ALL_ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_keys_reach_what_they_list_and_nothing_else(keyed, route, who):
    got = await status(keyed, route, WHO[who])
    if who in THROUGH[route.scope]:
        assert got not in (401, 403)
    else:
        assert got == (401 if who in STRANGERS else 403)


@pytest.mark.parametrize("who", WHO)
async def test_exporting_a_report_writes_so_it_needs_what_a_write_needs(keyed, who):
    path, query = "/v1/optimization/report", "export_file=true"
    got = (await keyed.ask("GET", path, headers=WHO[who], query=query)).status
    assert got == (200 if who in ("admin", "both") else 401 if who in STRANGERS else 403)


@pytest.mark.parametrize(
    "path",
    [
        "//v1/optimization/stop",
        "/v1/../v1/optimization/stop",
        "/v1/optimization/stop/",
        "/V1/optimization/stop",
        "/v1/optimization//stop",
        "/v1/optimization/stop;x",
        "/v1/%2e%2e/v1/optimization/stop",
        "/v1/models/../optimization/stop",
        "/health/../v1/optimization/stop",
        "/v1/optimization/stop%00",
    ],
)
async def test_a_path_is_its_exact_self(keyed, path):
    keyed.control.commands.clear()
    headers = [("x-original-url", "/health"), ("x-forwarded-prefix", "/v1")]
    reply = await keyed.ask("POST", path, b"", headers=headers)
    assert reply.status in (404, 405)
    assert keyed.control.commands == []


async def test_a_key_brings_its_tenant_and_limits(keyed, site_of):
    site = site_of(KEYED)
    await site.ask(
        "POST", "/v1/completions", {"model": "auto", "prompt": "a"}, headers=[bearer("infer-only")]
    )
    who = site.director.requests[0].principal
    assert (who.key_id, who.tenant, who.optimize, who.ceilings) == (
        "infer-only",
        "blue",
        False,
        {"max_tokens": 5},
    )


async def test_a_key_sent_twice_is_refused(keyed):
    reply = await keyed.ask("GET", "/v1/models", headers=[bearer("data"), bearer("data")])
    assert (reply.status, reply.error["code"]) == (400, "repeated_header")


@pytest.mark.parametrize("headers", [[bearer("data")], [bearer("data"), admin("anything")]])
async def test_without_an_admin_key_changes_are_refused_naming_the_setting(site_of, headers):
    site = site_of(Settings(api_key="data"))
    reply = await site.ask("POST", "/v1/optimization/stop", headers=headers)
    assert reply.status == 403
    assert "--admin-key" in reply.error["message"]
    assert (await site.ask("GET", "/v1/optimization/status", headers=headers)).status == 200
    assert (await site.ask("POST", "/v1/optimization/stop")).status == 401


async def test_with_only_an_admin_key_changes_need_it(site_of):
    site = site_of(Settings(admin_key="root"))
    assert (await site.ask("GET", "/v1/models", headers=[bearer("placeholder")])).status == 200
    assert (await site.ask("POST", "/v1/optimization/stop")).status == 401
    assert (await site.ask("POST", "/v1/optimization/stop", headers=[admin("root")])).status == 200


FOREIGN = [
    ([("host", "evil.example:2240")], 403),
    ([("host", "localhost.evil.example")], 403),
    ([("host", "192.168.0.7:2240")], 403),
    ([("origin", "https://evil.example")], 403),
    ([("origin", "null")], 403),
    ([("origin", "http://127.0.0.1:8080")], 403),
    # Pages load images and frames without an Origin.
    ([("sec-fetch-site", "cross-site")], 403),
    ([("sec-fetch-site", "same-site")], 403),
    ([("host", "a/#@b")], 400),
    ([("host", "user@localhost")], 400),
    ([("host", "localhost"), ("host", "evil.example")], 400),
]


@pytest.mark.parametrize(("headers", "code"), FOREIGN)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/optimization/status", "/metrics"])
async def test_without_keys_foreign_pages_and_names_are_refused(site_of, path, headers, code):
    assert (await site_of().ask("GET", path, headers=headers)).status == code


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("host", "localhost:2240")],
        [("host", "[::1]:2240"), ("origin", "http://[::1]:2240")],
        [("origin", "http://127.0.0.1:2240")],
        [("sec-fetch-site", "same-origin")],
        [("sec-fetch-site", "none")],
        [bearer("placeholder")],
    ],
)
async def test_without_keys_this_machine_may_do_everything(site_of, headers):
    site = site_of()
    assert (await site.ask("POST", "/v1/optimization/stop", headers=headers)).status == 200
    assert not site.control.running


async def test_with_keys_any_name_is_fine(keyed):
    headers = [bearer("data"), ("host", "llm.example"), ("origin", "https://app.example")]
    assert (await keyed.ask("GET", "/v1/models", headers=headers)).status == 200


@pytest.mark.parametrize("route", ALL_ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_an_admin_port_parts_the_planes(site_of, route):
    site = site_of()
    parts = (Settings(admin_port=0), site.director, site.control, None, None)
    data, control = build_gateway(*parts), build_admin_gateway(*parts)
    path = route.path
    assert (route.method in data.table.get(path, {})) is (route.plane in DATA_ONLY)
    assert (route.method in control.table.get(path, {})) is (route.plane in CONTROL_ONLY)
    assert route.plane is not Plane.DATA or not path.startswith("/v1/optimization")


def test_in_a_plugin_reading_is_open_and_changing_needs_the_admin_key():
    closed, keyed = Guard.for_plugin(), Guard.for_plugin("root")
    engines_key = (b"authorization", b"Bearer the-engines-own")
    assert closed.authorize([engines_key], "admin:read").key_id == "anonymous"
    with pytest.raises(RequestError) as caught:
        closed.authorize([engines_key], "admin:write")
    assert caught.value.status == 403
    assert "admin_key" in str(caught.value)
    with pytest.raises(RequestError) as caught:
        keyed.authorize([engines_key], "admin:write")
    assert caught.value.status == 401
    assert keyed.authorize([(b"x-loadwise-admin-key", b"root")], "admin:write").key_id == "admin-key"


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "LOCALHOST"])
def test_loopback_names(name):
    assert is_loopback(name)


@pytest.mark.parametrize("name", ["0.0.0.0", "10.0.0.1", "example.org", "localhost.", ""])
def test_other_names(name):
    assert not is_loopback(name)
