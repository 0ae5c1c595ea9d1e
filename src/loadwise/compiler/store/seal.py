"""What proves that a package is ours and whole: digests of its files, and an HMAC-SHA256 over them."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

KEY_BYTES = 32
MANIFEST = "manifest.json"


def local_key(path: Path) -> bytes:
    """The key in `path`, made at the first call; `OSError` where it can be neither read nor made.

    It appears under its name only when it is whole, and the first of several makers wins.
    """
    with suppress(FileNotFoundError):
        return _read_key(path)
    scratch = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        with suppress(FileExistsError):
            os.link(scratch, path)
    finally:
        scratch.unlink()
    return _read_key(path)


def _read_key(path: Path) -> bytes:
    facts = path.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise PermissionError(f"{path} must belong to this user alone (mode 0600).")
    return path.read_bytes()


def sealed(folder: Path, facts: dict[str, Any], key: bytes) -> str:
    """The manifest of the files in `folder`, with `facts` about them, as text."""
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    body = {"facts": facts, "files": files}
    return json.dumps({**body, "hmac": _mac(body, key)})


def opened(text: str, key: bytes) -> dict[str, Any] | None:
    """The facts and digests of a manifest, or None when it was not sealed with `key`."""
    try:
        values = json.loads(text)
        body = {"facts": values["facts"], "files": values["files"]}
        given = str(values["hmac"])
    except (ValueError, KeyError, TypeError):
        return None
    return body if hmac.compare_digest(given.encode(), _mac(body, key).encode()) else None


def whole(folder: Path, files: dict[str, str]) -> bool:
    """Whether `folder` holds exactly these files, unchanged."""
    found = {path.name for path in folder.iterdir()} - {MANIFEST}
    return found == set(files) and all(file_digest(folder / name) == files[name] for name in found)


def file_digest(path: Path) -> str:
    """SHA-256 of a plain file; anything else has none."""
    if not path.is_file() or path.is_symlink():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mac(body: dict[str, Any], key: bytes) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
