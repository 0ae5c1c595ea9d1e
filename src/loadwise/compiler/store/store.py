"""The directory of kept packages: one folder each, named by what the package was made from."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from loadwise.compiler.store.seal import MANIFEST, local_key, opened, sealed, whole
from loadwise.errors import BuildError

DEFAULT_BYTES = 4 * 1024**3
_KEY, _LOCK = ".key", ".lock"


class PackageStore:
    """Keeps packages in `root` (0700) up to `max_bytes`, the least recently used go first.

    Several processes may share it: changes are made under a lock and appear by a rename. What is damaged, or
    was not sealed with this store's key, is not there. A directory that cannot be written keeps nothing, and
    `problem` says why; it never raises.
    """

    def __init__(self, root: Path, max_bytes: int = DEFAULT_BYTES) -> None:
        self.root = root
        self.max_bytes = max_bytes
        # Why nothing is kept at present, in words; empty while all is well.
        self.problem = ""

    @contextmanager
    def find(self, name: str) -> Iterator[Path | None]:
        """The folder of a package that is whole and ours, and stays so inside the block; else None."""
        with self._locked(fcntl.LOCK_SH) as key:
            folder = self.root / name
            found = key is not None and self._facts(folder, key) is not None
            if found:
                with suppress(OSError):
                    os.utime(folder)
            yield folder if found else None

    def put(self, name: str, package: Path, facts: dict[str, Any]) -> bool:
        """The files of `package` are kept under `name`, in place of what was there; False if not."""
        with self._locked(fcntl.LOCK_EX) as key:
            return key is not None and self._try(lambda: self._put(name, package, facts, key))

    def discard(self, name: str) -> None:
        """Nothing is kept under `name`."""
        with self._locked(fcntl.LOCK_EX) as key:
            if key is not None:
                self._try(lambda: self._remove(self.root / name))

    def entries(self) -> dict[str, dict[str, Any]]:
        """The facts of every package that is whole and ours, by name, least recently used first."""
        with self._locked(fcntl.LOCK_SH) as key:
            if key is None:
                return {}
            found = {folder.name: self._facts(folder, key) for folder in self._folders()}
            return {name: facts for name, facts in found.items() if facts is not None}

    def _put(self, name: str, package: Path, facts: dict[str, Any], key: bytes) -> None:
        size = sum(path.stat().st_size for path in package.iterdir())
        if size > self.max_bytes:
            raise BuildError(f"A package of {size} bytes is larger than the store ({self.max_bytes}).")
        scratch = self.root / f".new-{secrets.token_hex(8)}"
        try:
            scratch.mkdir(mode=0o700)
            for path in package.iterdir():
                shutil.copyfile(path, scratch / path.name, follow_symlinks=False)
            (scratch / MANIFEST).write_text(sealed(scratch, facts, key), encoding="utf-8")
            _reach_the_disk(scratch)
            self._remove(self.root / name)
            scratch.rename(self.root / name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self._make_room(name)

    def _make_room(self, newest: str) -> None:
        """The oldest are gone until the rest fit; what a process that died left behind is gone too."""
        for leftover in self.root.glob(".new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        sizes = {folder: _size(folder) for folder in self._folders()}
        for folder in list(sizes):
            if sum(sizes.values()) <= self.max_bytes:
                return
            if folder.name != newest:
                self._remove(folder)
                del sizes[folder]

    def _remove(self, folder: Path) -> None:
        if folder.is_dir():
            # Renamed first: a folder half removed must not be found.
            gone = self.root / f".new-{secrets.token_hex(8)}"
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _folders(self) -> list[Path]:
        found = [path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def _facts(self, folder: Path, key: bytes) -> dict[str, Any] | None:
        try:
            body = opened((folder / MANIFEST).read_text(encoding="utf-8"), key)
            if body is None or body["facts"].get("name") != folder.name or not whole(folder, body["files"]):
                return None
        except (OSError, ValueError):
            return None
        return dict(body["facts"])

    def _try(self, change: Callable[[], None]) -> bool:
        try:
            change()
        except (OSError, BuildError) as error:
            self.problem = f"Builds are not kept in {self.root}: {error}"
            return False
        self.problem = ""
        return True

    @contextmanager
    def _locked(self, kind: int) -> Iterator[bytes | None]:
        """The store's key while its lock is held, or None where there is no store to be had."""
        descriptor, key = None, None
        try:
            descriptor = self._open()
            fcntl.flock(descriptor, kind)
            key = local_key(self.root / _KEY)
        except OSError as error:
            self.problem = f"Builds are not kept in {self.root}: {error}"
        try:
            yield key
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _open(self) -> int:
        """The lock file's descriptor; `OSError` unless the directory is this user's alone."""
        with suppress(FileExistsError):
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700)
        facts = self.root.lstat()
        if self.root.is_symlink() or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
            raise PermissionError("it must be a directory of this user alone (mode 0700)")
        try:
            return os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            # On a read-only disk what is kept can still be found.
            return os.open(self.root / _LOCK, os.O_RDONLY)


def _reach_the_disk(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
