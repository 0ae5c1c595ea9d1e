"""What a header may carry: towards an engine, back from it, and what we add ourselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from urllib.parse import quote

from loadwise.decision.facts import Number, StrategyName
from loadwise.gateway.asgi import RawHeaders, Scope
from loadwise.ports import Dispatch

# Traces and sessions go on to upstreams; credentials and cookies never do.
TO_ENGINES = frozenset(
    {b"traceparent", b"tracestate", b"baggage", b"x-session-id", b"anthropic-version", b"anthropic-beta"}
)
# Meant for one connection (RFC 9110, section 7.6.1), or ours to say.
_NOT_RELAYED = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "date",
        "server",
        "set-cookie",
        "x-request-id",
    }
)
Changes = tuple[tuple[str, Number], ...]
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def to_engine(scope: Scope) -> dict[str, str]:
    """The client's headers that go on to an engine, by lower-case name."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in TO_ENGINES and _VALUE.fullmatch(value.decode("latin-1"))
    }


def from_engine(headers: Sequence[tuple[str, str]]) -> RawHeaders:
    """An engine's headers that go on to the client: end to end ones, well formed, none of ours."""
    return [*_relayed(tuple(headers))]


# Nearly all answers of one engine carry the same.
@lru_cache(256)
def _relayed(headers: tuple[tuple[str, str], ...]) -> tuple[tuple[bytes, bytes], ...]:
    lowered = [(name.lower(), value) for name, value in headers]
    named = {
        part.strip() for name, value in lowered if name == "connection" for part in value.lower().split(",")
    }
    return tuple(
        (name.encode("ascii"), value.encode("latin-1"))
        for name, value in lowered
        if name not in _NOT_RELAYED
        and name not in named
        and not name.startswith("x-loadwise-")
        and _NAME.fullmatch(name)
        and _VALUE.fullmatch(value)
    )


def of_dispatch(dispatch: Dispatch) -> RawHeaders:
    """What was decided for a request, for its client to see."""
    changes = tuple(dispatch.changes.items())
    headers = [
        *_decided(dispatch.member_id, dispatch.strategy, dispatch.reason, changes, dispatch.config_version)
    ]
    advice = dispatch.advised
    if advice is not None:
        would = {"member": advice.member_id, "reason": advice.reason, **advice.changes}
        headers.append((b"x-loadwise-advised", _plain(_listed(would.items()))))
    return headers


# Few different decisions are made between two changes of strategy.
@lru_cache(256)
def _decided(
    member_id: str, strategy: StrategyName, reason: str, changes: Changes, version: int
) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"x-loadwise-member", _plain(member_id)),
        (b"x-loadwise-strategy", strategy.value.encode()),
        (b"x-loadwise-reason", _plain(reason)),
        (b"x-loadwise-tuned", _plain(_listed(changes) or "none")),
        (b"x-loadwise-config", b"%d" % version),
    )


def _listed(values: Iterable[tuple[str, object]]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values)


def _plain(text: str) -> bytes:
    if text.isascii() and text.isprintable():
        return text.encode("ascii")
    return quote(text, safe=" /:@,=+").encode("ascii")
