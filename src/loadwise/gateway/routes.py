"""Every route, its scope and its listener: the one table that dispatch, authentication and tests read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from loadwise.decision.facts import Endpoint
from loadwise.gateway.auth import ADMIN_READ, ADMIN_WRITE, FEEDBACK, INFER, METRICS
from loadwise.telemetry.dashboard import assets


class Plane(StrEnum):
    """Which listener serves a route when the control plane has a port of its own."""

    DATA = "data"
    CONTROL = "control"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Route:
    """A route by its exact path; `scope` None is open to all. `name` is its handler's."""

    method: str
    path: str
    scope: str | None
    plane: Plane
    name: str
    summary: str


OPTIMIZATION = "/v1/optimization"
MODEL_PREFIX = "/v1/models/"


def _passed(endpoint: Endpoint, summary: str) -> Route:
    return Route("POST", endpoint.value, INFER, Plane.DATA, endpoint.name.lower(), summary)


# Passed on to members that serve them, as they are.
PASSED_ROUTES = (
    _passed(Endpoint.RESPONSES, "Answer in the form of OpenAI's Responses"),
    _passed(Endpoint.MESSAGES, "Answer in the form of Anthropic's Messages"),
    _passed(Endpoint.EMBEDDINGS, "Embed texts"),
    _passed(Endpoint.SPEECH, "Speak a text"),
    _passed(Endpoint.TRANSCRIPTIONS, "Write speech down"),
    _passed(Endpoint.TRANSLATIONS, "Write speech down in English"),
    _passed(Endpoint.IMAGES, "Draw images"),
    _passed(Endpoint.IMAGE_EDITS, "Change an image"),
)
DATA_ROUTES = (
    Route("POST", "/v1/chat/completions", INFER, Plane.DATA, "chat", "Answer a chat"),
    Route("POST", "/v1/completions", INFER, Plane.DATA, "completion", "Complete a text"),
    Route("GET", "/v1/models", INFER, Plane.DATA, "models", "List routes and members"),
    Route("GET", "/v1/models/{model}", INFER, Plane.DATA, "model", "Show one route or member"),
    Route("GET", "/health", None, Plane.BOTH, "health", "Whether the process answers"),
    Route("GET", "/health/readiness", None, Plane.BOTH, "ready", "Whether new requests are welcome"),
    Route("GET", "/version", INFER, Plane.DATA, "version", "The version of loadwise"),
    Route("GET", "/metrics", METRICS, Plane.CONTROL, "metrics", "Metrics for Prometheus"),
    Route("GET", "/docs", ADMIN_READ, Plane.CONTROL, "docs", "This interface, for people"),
    Route("GET", "/openapi.json", ADMIN_READ, Plane.CONTROL, "openapi", "This interface, for programs"),
    *PASSED_ROUTES,
)

# The page's files hold no figures: the page asks for those with the key that its reader gives it.
PAGE_ROUTES = tuple(
    Route("GET", path, None, Plane.CONTROL, "page", "A file of the dashboard") for path in assets()
)


def _control(method: str, path: str, name: str, summary: str, scope: str | None = None) -> Route:
    scope = scope or (ADMIN_READ if method == "GET" else ADMIN_WRITE)
    return Route(method, OPTIMIZATION + path, scope, Plane.CONTROL, name, summary)


CONTROL_ROUTES = (
    _control("POST", "/configure", "configure", "Change settings as a whole"),
    _control("POST", "/start", "start", "Begin optimising"),
    _control("POST", "/stop", "stop", "Stop optimising; serving goes on untouched"),
    _control("GET", "/status", "status", "What runs, with its configuration"),
    _control("GET", "/metrics", "metrics", "The server's load, measured now"),
    _control("GET", "/ensemble", "ensemble", "Members, weights and performance"),
    _control("GET", "/report", "report", "Performance report with grade and recommendations"),
    _control("GET", "/dashboard", "dashboard", "The dashboard's live values"),
    _control("GET", "/events", "events", "The page's values as server-sent events, once a second"),
    _control("POST", "/ensemble/add_model", "add_model", "Admit a model of the catalogue"),
    _control("POST", "/force_recompile", "force_recompile", "Start a rebuild now"),
    _control("POST", "/feedback", "feedback", "Score an answer", FEEDBACK),
)
