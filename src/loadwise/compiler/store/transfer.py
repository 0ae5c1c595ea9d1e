"""Packages for another machine: one archive, sealed with a key that the operator gives on both sides.

The archive is a plain tar of `name/file` members. Nothing of it is unpacked before its seal has been checked,
and an unpacked package is found by another machine only where it was made for just such a machine.
"""

from __future__ import annotations

import hashlib
import hmac
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from loadwise.compiler.store.seal import MANIFEST, opened, sealed, whole
from loadwise.compiler.store.store import PackageStore
from loadwise.errors import ConfigurationError

_LEAST_KEY_BYTES = 16


def operator_key(path: Path) -> bytes:
    """The key in a file, as both sides use it; `ConfigurationError` when it is missing or too short."""
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ConfigurationError(
            f"Cannot read the key file {path}: {error.strerror}.", field="--key"
        ) from None
    if len(secret) < _LEAST_KEY_BYTES:
        raise ConfigurationError(
            f"The key in {path} has {len(secret)} bytes; at least {_LEAST_KEY_BYTES} are needed. "
            "Make one: head -c 32 /dev/urandom | base64 > FILE.",
            field="--key",
        )
    return hmac.new(secret, b"loadwise packages", hashlib.sha256).digest()


def export_packages(store: PackageStore, archive: Path, key: bytes) -> list[str]:
    """`archive` holds every package of the store: their names. It is written whole or not at all."""
    names = []
    scratch = archive.with_name(f"{archive.name}.part")
    try:
        with tarfile.open(scratch, "w", format=tarfile.PAX_FORMAT) as tar:
            for name, facts in store.entries().items():
                with store.find(name) as folder:
                    if folder is not None:
                        _add(tar, folder, sealed(folder, facts, key))
                        names.append(name)
        scratch.chmod(0o600)
        scratch.rename(archive)
    finally:
        scratch.unlink(missing_ok=True)
    return names


def _add(tar: tarfile.TarFile, folder: Path, manifest: str) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(manifest)
        file.flush()
        tar.add(file.name, f"{folder.name}/{MANIFEST}")
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            tar.add(path, f"{folder.name}/{path.name}", recursive=False)


def import_packages(store: PackageStore, archive: Path, key: bytes) -> list[str]:
    """The store keeps every package of `archive`: their names. Nothing is kept if one is not as sealed."""
    with tempfile.TemporaryDirectory(prefix="import-") as scratch:
        try:
            with tarfile.open(archive, "r:") as tar:
                folders = _unpacked(tar, Path(scratch))
        except (OSError, tarfile.TarError) as error:
            raise ConfigurationError(f"Cannot read {archive}: {error}.", field="--import") from None
        facts = {folder: _checked(folder, key, archive) for folder in folders}
        return [folder.name for folder in folders if store.put(folder.name, folder, facts[folder])]


def _unpacked(tar: tarfile.TarFile, scratch: Path) -> list[Path]:
    """One folder per package, of plain files with plain names only."""
    for member in tar:
        parts = PurePosixPath(member.name).parts
        plain = len(parts) == 2 and not any(part.startswith(("..", "/")) for part in parts)
        source = tar.extractfile(member) if member.isreg() and plain else None
        if source is None:
            raise tarfile.TarError(f"{member.name!r} does not belong into an archive of packages")
        (scratch / parts[0]).mkdir(mode=0o700, exist_ok=True)
        with source, (scratch / parts[0] / parts[1]).open("wb") as target:
            while piece := source.read(1 << 20):
                target.write(piece)
    return sorted(path for path in scratch.iterdir() if path.is_dir())


def _checked(folder: Path, key: bytes, archive: Path) -> dict[str, object]:
    manifest = folder / MANIFEST
    body = opened(manifest.read_text(encoding="utf-8"), key) if manifest.is_file() else None
    if body is None or body["facts"].get("name") != folder.name or not whole(folder, body["files"]):
        raise ConfigurationError(
            f"{archive} was not sealed with this key, or was changed since ({folder.name:.80}). "
            "Export it again with the same --key.",
            field="--key",
        )
    manifest.unlink()
    return dict(body["facts"])
