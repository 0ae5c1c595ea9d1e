"""Who may do what: keys, their scopes, and the guard against pages that talk to a loopback server."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from loadwise.decision.facts import Principal
from loadwise.errors import RequestError
from loadwise.settings import Settings

INFER, METRICS, FEEDBACK = "infer", "metrics", "feedback"
ADMIN_READ, ADMIN_WRITE = "admin:read", "admin:write"
DATA_SCOPES = frozenset({INFER, METRICS, ADMIN_READ})
ALL_SCOPES = frozenset({INFER, METRICS, FEEDBACK, ADMIN_READ, ADMIN_WRITE})
PLUGIN_SCOPES = ALL_SCOPES - {ADMIN_WRITE, FEEDBACK}
ADMIN_HEADER = b"x-loadwise-admin-key"
# What browsers say of requests that this server's own pages, or the user's own hand, caused.
_OWN_SITES = frozenset({b"same-origin", b"none"})
_AUTHORITY = re.compile(rb"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")

_NO_ADMIN_KEY = (
    "No admin key is configured, so this server takes no changes over HTTP. Set one with --admin-key "
    "(LOADWISE_ADMIN_KEY, or admin_key in the configuration) and send it as x-loadwise-admin-key."
)


@dataclass(frozen=True, slots=True)
class Credential:
    """A key's SHA-256, the header that carries it, and whom it stands for."""

    digest: bytes
    header: bytes
    principal: Principal


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _credentials(settings: Settings) -> Iterable[Credential]:
    if settings.api_key is not None:
        principal = Principal(key_id="api-key", scopes=DATA_SCOPES)
        yield Credential(_digest(settings.api_key.get_secret_value()), b"authorization", principal)
    for key in settings.keys:
        principal = Principal(
            key_id=key.id,
            tenant=key.tenant,
            scopes=frozenset(key.scopes),
            optimize=key.optimize,
            ceilings=dict(key.ceilings.items()),
            tags=key.rule,
        )
        yield Credential(bytes.fromhex(key.sha256), b"authorization", principal)
    if settings.admin_key is not None:
        yield _admin(settings.admin_key.get_secret_value())


def _admin(key: str) -> Credential:
    return Credential(_digest(key), ADMIN_HEADER, Principal(key_id="admin-key", scopes=ALL_SCOPES))


class Guard:
    """Says for each request who asks, or why not.

    `anonymous` are the scopes of requests without a key; with `local_only` these must come from this
    machine's own pages and names (no foreign `Origin` or `Host`).
    """

    def __init__(
        self, credentials: Sequence[Credential], anonymous: frozenset[str], *, local_only: bool
    ) -> None:
        self._credentials = tuple(credentials)
        self._headers = frozenset(credential.header for credential in credentials)
        self._anonymous = Principal(scopes=anonymous)
        self._local_only = local_only

    @classmethod
    def for_server(cls, settings: Settings) -> Guard:
        """A server's own guard: everything is open on loopback only, and only until a key is set."""
        credentials = tuple(_credentials(settings))
        keyed = any(credential.header == b"authorization" for credential in credentials)
        if keyed:
            return cls(credentials, frozenset(), local_only=False)
        return cls(credentials, DATA_SCOPES if credentials else ALL_SCOPES, local_only=True)

    @classmethod
    def for_plugin(cls, admin_key: str | None = None) -> Guard:
        """Inside another server: reading is as open as that server's routes, changes need the admin key."""
        return cls([_admin(admin_key)] if admin_key else [], PLUGIN_SCOPES, local_only=False)

    def authorize(self, headers: Iterable[tuple[bytes, bytes]], needed: str | None) -> Principal:
        """Who asks, with `needed` among its scopes; None needs nothing.

        Raises `RequestError`: 401 without or with a wrong key, 403 when the key's scopes do not
        reach or the request comes from a foreign page, 400 for a `Host` that is none.
        """
        sent = _collect(headers)
        if needed is None:
            return self._anonymous
        named = [name for name in (b"authorization", ADMIN_HEADER) if name in sent]
        found = [self._identify(name, sent[name]) for name in named]
        principals = [principal for principal in found if principal is not None]
        for principal in principals:
            if needed in principal.scopes:
                return principal
        if needed in self._anonymous.scopes:
            if self._local_only:
                _require_local(sent)
            return self._anonymous
        raise self._refusal(needed, identified=bool(principals))

    def _identify(self, header: bytes, value: bytes) -> Principal | None:
        if header not in self._headers:
            # No key of this kind is configured: clients send placeholders, engines have their own.
            return None
        key = value
        if header == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() != b"bearer":
                raise _wrong_key("The Authorization header must be 'Bearer KEY'.")
        digest = hashlib.sha256(key.strip()).digest()
        match: Principal | None = None
        # All are compared, so that the time says nothing about which one came close.
        for credential in self._credentials:
            if credential.header == header and hmac.compare_digest(credential.digest, digest):
                match = credential.principal
        if match is None:
            raise _wrong_key(f"The key in the header {header.decode()} is not known here.")
        return match

    def _refusal(self, needed: str, *, identified: bool) -> RequestError:
        changeable = ADMIN_HEADER in self._headers
        if not changeable and (not self._headers or (identified and needed == ADMIN_WRITE)):
            return RequestError(_NO_ADMIN_KEY, status=403, kind="permission_error", code="no_admin_key")
        if identified:
            return RequestError(
                f"The key lacks the scope {needed!r}{_hint(needed)}.",
                status=403,
                kind="permission_error",
                code="missing_scope",
            )
        name = "x-loadwise-admin-key" if needed == ADMIN_WRITE else "Authorization: Bearer"
        return _wrong_key(f"This needs a key: send it as {name}.")


def _hint(needed: str) -> str:
    return "; send the admin key as x-loadwise-admin-key" if needed.startswith("admin:") else ""


def _wrong_key(message: str) -> RequestError:
    return RequestError(message, status=401, kind="authentication_error", code="invalid_api_key")


_READ = frozenset({b"authorization", ADMIN_HEADER, b"origin", b"host", b"sec-fetch-site"})


def _collect(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Keys, and where from. Two of one kind are refused: which one counts would be a guess."""
    sent: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _READ:
            if name in sent:
                raise RequestError(f"The header {name.decode()} was sent twice.", code="repeated_header")
            sent[name] = value
    if b"host" in sent and _AUTHORITY.fullmatch(sent[b"host"]) is None:
        raise RequestError("The Host header is not a host.", code="invalid_host")
    return sent


def _require_local(sent: Mapping[bytes, bytes]) -> None:
    """Passes requests to this machine's own names that no foreign page sent."""
    origin, host, site = sent.get(b"origin"), sent.get(b"host"), sent.get(b"sec-fetch-site")
    authority = None if host is None else _AUTHORITY.fullmatch(host)
    if authority is not None and not is_loopback(authority["name"].decode("ascii")):
        raise _foreign("Host", host)
    if origin is not None and origin.partition(b"://")[2].lower() != (host or b"").lower():
        raise _foreign("Origin", origin)
    # A page's images, frames and links come without an Origin.
    if site is not None and site not in _OWN_SITES:
        raise _foreign("Sec-Fetch-Site", site)


def _foreign(what: str, value: bytes | None) -> RequestError:
    return RequestError(
        f"{what} {(value or b'').decode('latin-1')!r:.80} is foreign: without keys this server answers only "
        "its own machine. Set --api-key to open it.",
        status=403,
        kind="permission_error",
        code="foreign_origin",
    )


@lru_cache(256)
def is_loopback(name: str) -> bool:
    """Whether a host name or address (IPv6 in brackets) is this machine's own."""
    name = name.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
