"""The page's files, as they are served: HTML, CSS and JavaScript modules, nothing from elsewhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

PATH: Final = "/dashboard"
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing inline, nothing from another host, inside nobody's frame; what the page reads is this server's.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-cache"),
)


@dataclass(frozen=True, slots=True)
class Asset:
    """One file: its bytes, type, and a tag that changes with them."""

    body: bytes
    content_type: str
    etag: str


@cache
def assets() -> dict[str, Asset]:
    """Every file by the path that serves it; the HTML page is `PATH` itself."""
    found = {}
    for entry in files(__name__).iterdir():
        kind = "." + entry.name.rpartition(".")[2]
        if kind in TYPES:
            path = PATH if entry.name == "index.html" else f"{PATH}/{entry.name}"
            body = entry.read_bytes()
            found[path] = Asset(body, TYPES[kind], f'"{hashlib.sha256(body).hexdigest()[:20]}"')
    return dict(sorted(found.items()))
