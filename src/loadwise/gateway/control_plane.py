"""`/v1/optimization/*` as FastAPI routes over the mixin; they can join any FastAPI application."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from loadwise.errors import (
    CapacityError,
    ConfigurationError,
    ConflictError,
    LoadwiseError,
    RequestError,
    UnknownNameError,
)
from loadwise.gateway.asgi import error_headers
from loadwise.gateway.auth import ADMIN_WRITE, Guard
from loadwise.gateway.body import check_text, not_an_object, read_body
from loadwise.gateway.feed import Feed, FeedResponse
from loadwise.gateway.fields import wrong_field
from loadwise.gateway.json_types import check_types, inlined
from loadwise.gateway.routes import CONTROL_ROUTES, Route
from loadwise.gateway.serving import OptimizationServingMixin
from loadwise.gateway.shapes import Dashboard, EnsembleStatus, ErrorBody, LoadMetrics, Shape, Status
from loadwise.ports import JsonObject
from loadwise.settings import OptimizationConfig

BODY_LIMIT_BYTES = 1024**2
BODY_TIMEOUT_S = 60.0
# A setting that is left out keeps its value, so none is required and no default applies.
_SETTINGS = inlined(OptimizationConfig.model_json_schema())
_OBJECT = msgspec.json.Decoder(dict[str, Any])
ModelId = Annotated[str, Query(min_length=1, max_length=256, description="A name of the catalogue.")]
Weight = Annotated[float, Query(gt=0, le=1000, allow_inf_nan=False, description="Its first weight.")]

# One server-sent event; `data` is JSON.
EVENT = {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
SHAPES = {
    "status": Status,
    "metrics": LoadMetrics,
    "ensemble": EnsembleStatus,
    "dashboard": Dashboard,
}


def error_of(error: Exception) -> RequestError:
    """An error of the control plane as its answer: 400 wrong values, 404 unknown names, 409 no room."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, RequestValidationError):
        problem = error.errors()[0]
        where = str(problem["loc"][-1])
        if problem["type"] == "missing":
            return RequestError(f"{where}: this query parameter is required.", param=where)
        return RequestError(f"{where}: {problem['msg']}, not {problem.get('input')!r:.80}.", param=where)
    if isinstance(error, ConfigurationError):
        return RequestError(str(error), param=error.field, code="invalid_configuration")
    if isinstance(error, UnknownNameError):
        return RequestError(str(error), status=404, code="not_found")
    if isinstance(error, CapacityError):
        return RequestError(str(error), status=409, code="no_capacity")
    if isinstance(error, ConflictError):
        return RequestError(str(error), status=409, code="configuration_conflict")
    return RequestError(str(error), status=500, kind="server_error", code="internal_error")


def answer(value: Any, status: int = 200) -> Response:
    """A value as JSON; NaN and infinity become null."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


class ControlRoute(APIRoute):
    """A route that answers loadwise's errors in OpenAI's shape, whatever application it joins."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """The handler with its errors turned into answers."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except (LoadwiseError, RequestValidationError) as error:
                said = error_of(error)
                response = answer(said.body(), said.status)
                for name, value in error_headers(said):
                    response.headers[name.decode("ascii")] = value.decode("ascii")
                return response

        return handled


async def _changes(request: Request) -> dict[str, Any]:
    body = await read_body(request.scope, request.receive, BODY_LIMIT_BYTES, BODY_TIMEOUT_S)
    await check_text(body)
    try:
        changes = _OBJECT.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise not_an_object(error) from None
    check_types(changes, _SETTINGS)
    return changes


class Score(msgspec.Struct, forbid_unknown_fields=True):
    """The body of feedback."""

    # The x-request-id of an answer.
    request_id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    score: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
    # Who or what judged it.
    source: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9._:@/-]{1,64}$")]


_SCORE = msgspec.json.Decoder(Score)


async def _score(request: Request) -> Score:
    body = await read_body(request.scope, request.receive, BODY_LIMIT_BYTES, BODY_TIMEOUT_S)
    await check_text(body)
    try:
        return _SCORE.decode(body)
    except msgspec.ValidationError as error:
        raise wrong_field(error) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise not_an_object(error) from None


def _endpoints(
    mixin: OptimizationServingMixin, feed: Feed, guard: Guard
) -> dict[str, Callable[..., Awaitable[Response]]]:
    """The routes' functions by name; their parameters are the routes' query parameters."""

    async def configure(request: Request, dry_run: bool = False) -> Response:
        return answer(await mixin.configure_optimization(await _changes(request), dry_run))

    async def status(format: Literal["json", "text"] = "json") -> Response:  # noqa: A002 - the query's name
        if format == "text":
            return Response(await mixin.get_diagnosis(), media_type="text/plain")
        return answer(await mixin.get_optimization_status())

    async def events() -> Response:
        return await feed.watch()

    async def report(request: Request, export_file: bool = False) -> Response:
        if export_file:
            # It writes, whatever the method says.
            guard.authorize(request.scope["headers"], ADMIN_WRITE)
        return answer(await mixin.get_performance_report(export_file))

    async def add_model(model_id: ModelId, initial_weight: Weight = 1.0) -> Response:
        return answer(await mixin.add_model_to_ensemble(model_id, initial_weight))

    async def force_recompile(model_id: ModelId | None = None) -> Response:
        return answer(await mixin.force_recompile(model_id))

    async def feedback(request: Request) -> Response:
        given = await _score(request)
        principal = request.state.principal
        return answer(await mixin.give_feedback(given.request_id, given.score, given.source, principal))

    return {
        "feedback": feedback,
        "configure": configure,
        "start": _plain(mixin.start_optimization),
        "stop": _plain(mixin.stop_optimization),
        "status": status,
        "events": events,
        "metrics": _plain(mixin.get_load_metrics),
        "ensemble": _plain(mixin.get_ensemble_status),
        "dashboard": _plain(mixin.get_dashboard),
        "report": report,
        "add_model": add_model,
        "force_recompile": force_recompile,
    }


def _plain(method: Callable[[], Awaitable[JsonObject]]) -> Callable[[], Awaitable[Response]]:
    async def endpoint() -> Response:
        return answer(await method())

    return endpoint


def _guarded(guard: Guard, route: Route, endpoint: Callable[..., Any]) -> Any:
    known = [name for name in inspect.signature(endpoint).parameters if name != "request"]

    async def check(request: Request) -> None:
        request.state.principal = guard.authorize(request.scope["headers"], route.scope)
        if route.method == "POST":
            _check_query(request, known)

    return Depends(check)


def _check_query(request: Request, known: list[str]) -> None:
    """Refuses what would be passed over: with `dryrun=true` for `dry_run=true` a change would be made."""
    for name in request.query_params:
        if name not in known:
            raise RequestError(
                f"There is no query parameter {name!r:.80} here. Known: {', '.join(known) or 'none'}.",
                param=f"{name:.80}",
                code="unknown_parameter",
            )


# Bodies that routes read themselves, for the description.
_BODIES = {"configure": _SETTINGS, "feedback": msgspec.json.schema(Score)["$defs"]["Score"]}


def _body(name: str) -> dict[str, Any] | None:
    if name not in _BODIES:
        return None
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _BODIES[name]}}}}


def _responses(route: Route) -> dict[int | str, dict[str, Any]]:
    refused: dict[str, Any] = {"model": ErrorBody}
    if route.name == "events":
        named = "Events named timeline, frame and trouble"
        stream = {"description": named, "content": {"text/event-stream": {"schema": EVENT}}}
        return {200: stream, "4XX": refused, "5XX": refused}
    answered: dict[str, Any] = {"model": SHAPES.get(route.name, Shape)}
    if route.name == "status":
        answered["content"] = {"text/plain": {}}
    return {200: answered, "4XX": refused}


def include_control_plane(
    app: FastAPI,
    mixin: OptimizationServingMixin,
    guard: Guard,
    draining: Callable[[], bool] = lambda: False,
) -> None:
    """The application serves `/v1/optimization/*` for those whom `guard` lets through.

    `draining` says that the server stops, which ends streams of events.
    """
    router = APIRouter(route_class=ControlRoute, tags=["optimization"])
    feed = Feed(mixin.get_timeline, mixin.get_live_values, draining=draining)
    endpoints = _endpoints(mixin, feed, guard)
    for route in CONTROL_ROUTES:
        router.add_api_route(
            route.path,
            endpoints[route.name],
            methods=[route.method],
            name=f"optimization_{route.name}",
            operation_id=f"optimization_{route.name}",
            summary=route.summary,
            dependencies=[_guarded(guard, route, endpoints[route.name])],
            responses=_responses(route),
            response_class=FeedResponse if route.name == "events" else JSONResponse,
            openapi_extra=_body(route.name),
        )
    app.include_router(router)
