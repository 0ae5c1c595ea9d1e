"""The gateway's OpenAPI description, and a page of it that needs nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import FastAPI

from loadwise.decision.facts import Endpoint
from loadwise.engines import forms
from loadwise.gateway.passing import FORMS
from loadwise.gateway.routes import DATA_ROUTES, PASSED_ROUTES, Route

PAGE_HEADERS = [
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
]
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f23;"
    "background:#fff}code{font-family:ui-monospace,monospace}table{border-collapse:collapse;margin:.5rem 0}"
    "td,th{border:1px solid #bbb;padding:.2rem .6rem;text-align:left;vertical-align:top}"
    "h2{font-size:1.1rem;margin:2rem 0 .3rem}"
)
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}}},
}
_BODIES: dict[str, dict[str, Any]] = {
    "chat": {"required": ["model", "messages"], "properties": {"messages": _MESSAGES}},
    "completion": {"required": ["model", "prompt"], "properties": {"prompt": {}}},
    **{Endpoint(route.path).name.lower(): {"required": ["model"]} for route in PASSED_ROUTES},
}


def described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the control plane with the data plane's routes beside it."""
    document = app.openapi()
    for route in DATA_ROUTES:
        document["paths"].setdefault(route.path, {})[route.method.lower()] = _operation(route)
    schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["key"] = {"type": "http", "scheme": "bearer"}
    schemes["admin_key"] = {"type": "apiKey", "in": "header", "name": "x-loadwise-admin-key"}
    document["security"] = [{}, {"key": []}, {"admin_key": []}]
    return document


def _operation(route: Route) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.name,
        "tags": ["data"],
        "responses": {
            "200": {"description": "The answer"},
            "4XX": {"description": "What was wrong", "content": error},
            "5XX": {"description": "Nothing could answer", "content": error},
        },
    }
    if route.name in _BODIES:
        model = {"type": "string", "minLength": 1, "description": "A route such as auto, or a member."}
        schema = {"type": "object", **_BODIES[route.name]}
        schema["properties"] = {"model": model, **schema.get("properties", {})}
        kind = forms.CONTENT_TYPE if route.path in FORMS else "application/json"
        operation["requestBody"] = {"required": True, "content": {kind: {"schema": schema}}}
    if "{model}" in route.path:
        parameter = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [parameter]
    return operation


def page(document: dict[str, Any]) -> bytes:
    """The document as an HTML page without scripts and without anything from another host."""
    title = escape(document["info"]["title"])
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title} {escape(document['info']['version'])}</h1>",
        "<p>The same for programs: <a href=openapi.json>openapi.json</a>.</p>",
    ]
    for path, methods in sorted(document["paths"].items()):
        for method, operation in methods.items():
            parts += _section(path, method, operation)
    return "".join(parts).encode()


def _section(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
    yield f"<p>{escape(operation.get('summary', ''))}</p>"
    rows = [*_parameters(operation), *_body_fields(operation)]
    if rows:
        yield "<table><tr><th>name</th><th>where</th><th>type</th><th>default</th></tr>"
        for row in rows:
            yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        yield "</table>"


def _parameters(operation: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for parameter in operation.get("parameters", []):
        yield _row(parameter["name"], parameter["in"], parameter["schema"])


def _body_fields(operation: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    for name, schema in content.get("schema", {}).get("properties", {}).items():
        yield _row(name, "body", schema)


def _row(name: str, where: str, schema: dict[str, Any]) -> tuple[str, str, str, str]:
    options = schema.get("anyOf", [schema])
    kinds = [
        " | ".join(map(str, option["enum"])) if "enum" in option else str(option.get("type", "any"))
        for option in options
    ]
    default = schema.get("default")
    return name, where, " or ".join(kinds), "" if default is None else str(default)
