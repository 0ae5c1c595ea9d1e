"""Applied configurations outlive a restart, unless the settings they were applied to changed.

Several servers may share the folder: each change is made on top of the latest, or refused with what that is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadwise.clock import SystemClock, iso_utc
from loadwise.errors import ConfigurationError
from loadwise.logs import get_logger
from loadwise.ports import Clock, JsonObject
from loadwise.settings import OptimizationConfig
from loadwise.telemetry.aside import set_aside

log = get_logger(__name__)
# Of so many other settings what was applied on top of them is kept too: of servers that share the folder.
OTHERS: Final = 3
UNREADABLE: Final = (OSError, ValueError, KeyError, TypeError, ConfigurationError)


def fingerprint(config: OptimizationConfig) -> str:
    """Equal for equal settings, across processes."""
    values = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(values.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An applied configuration, and which process wrote it when; `reverting` where it was put back."""

    config: OptimizationConfig
    version: int
    reverting: bool = False
    # Empty where an older version did not say.
    process: int | None = None
    host: str = ""
    time: str = ""
    # What no other writing has.
    mark: str = ""

    @property
    def writer(self) -> str:
        """Who wrote it, for people."""
        where = f" on {self.host}" if self.host else ""
        return f"process {self.process or 'unknown'}{where}, {self.time or 'at an unknown time'}"


class ChangedError(Exception):
    """Another process applied a configuration meanwhile, which is `kept`."""

    def __init__(self, kept: Kept) -> None:
        super().__init__(kept.writer)
        self.kept = kept


class ConfigStore:
    """One JSON file under the state folder; without a folder nothing is kept.

    `base` is the configuration as file, environment and command line gave it: what was applied on
    top of another base is not taken over.
    """

    def __init__(self, folder: Path | None, base: OptimizationConfig, clock: Clock | None = None) -> None:
        self.set_aside: Path | None = None
        # The latest that this process knows of; None while nothing was applied.
        self.latest: Kept | None = None
        self._clock: Clock = clock or SystemClock()
        self._path = None if folder is None else folder / "optimization.json"
        self._base = fingerprint(base)
        self._first = base
        # The mark of what this process wrote last.
        self._own: str | None = None
        # What the file looked like when it was read last.
        self._seen: tuple[int, int] | None = None

    def load(self) -> tuple[OptimizationConfig, int]:
        """The last applied configuration and its version, or the base with version 1.

        A file that cannot be understood is set aside with the ending `.corrupt-TIMESTAMP`.
        """
        if self._path is None or not self._path.exists():
            return self._first, 1
        try:
            self._seen = self._look()
            entries = _entries(self._path)
            found = entries.get(self._base)
            if found is None:
                log.info("applied_configuration_dropped", reason="the settings changed since it was applied")
                return self._first, 1
            self.latest = _kept(found)
        except UNREADABLE as error:
            self._put_aside(error)
            return self._first, 1
        return self.latest.config, self.latest.version

    def changed(self) -> Kept | None:
        """What another process applied since this one last looked; None for nothing that can be read."""
        try:
            seen = self._look()
            if self._path is None or seen is None or seen == self._seen:
                return None
            found = _entries(self._path).get(self._base)
            self._seen = seen
            return None if found is None else self._news(_kept(found))
        except UNREADABLE as error:
            log.warning("applied_configuration_unreadable", path=str(self._path), reason=str(error))
            return None

    def save(self, config: OptimizationConfig, version: int, *, reverting: bool = False) -> None:
        """The configuration is on disk, whole, readable by its owner only; `OSError` when it cannot be.

        Raises `ChangedError` where another process applied one since this one last looked.
        """
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = Kept(
            config=config, version=version, reverting=reverting, process=os.getpid(),
            host=socket.gethostname(), time=iso_utc(self._clock.wall_s()), mark=secrets.token_hex(8),
        )  # fmt: skip
        with _locked(self._path.with_suffix(".lock")):
            entries, found = self._present()
            news = None if found is None else self._news(found)
            if news is not None:
                raise ChangedError(news)
            entries.pop(self._base, None)
            _write(self._path, {**_entry(self._base, kept), "others": list(entries.values())[:OTHERS]})
            self.latest, self._own, self._seen = kept, kept.mark, self._look()

    @property
    def ours(self) -> bool:
        """Whether this process wrote the latest."""
        return self.latest is not None and self.latest.mark == self._own

    # --- inside ---

    def _news(self, found: Kept) -> Kept | None:
        """The configuration, known from now on; None where it was."""
        mine = self.latest
        if mine is not None and (found.mark, found.version) == (mine.mark, mine.version):
            return None
        self.latest = found
        return found

    def _present(self) -> tuple[dict[str, JsonObject], Kept | None]:
        """What the file holds now, and of it what is for these settings; nothing where it cannot be read."""
        try:
            entries = {} if self._path is None or not self._path.exists() else _entries(self._path)
            return entries, _kept(entries[self._base]) if self._base in entries else None
        except UNREADABLE as error:
            self._put_aside(error)
            return {}, None

    def _look(self) -> tuple[int, int] | None:
        if self._path is None or not self._path.exists():
            return None
        # Each writing is another file, so it has another number.
        found = self._path.stat()
        return found.st_mtime_ns, found.st_ino

    def _put_aside(self, error: Exception) -> None:
        path = self._path
        log.warning("applied_configuration_unreadable", path=str(path), reason=str(error))
        if path is not None and path.is_file():
            try:
                self.set_aside = set_aside(path, self._clock.wall_s())
            except OSError as fault:
                log.warning("not_set_aside", path=str(path), reason=str(fault))


def _entries(path: Path) -> dict[str, JsonObject]:
    """What was applied by the settings that it was applied on top of, the latest first."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    return {entry["base"]: entry for entry in ({**whole, "others": None}, *whole.get("others", ()))}


def _entry(base: str, kept: Kept) -> JsonObject:
    by = {"process": kept.process, "host": kept.host, "time": kept.time, "mark": kept.mark}
    return {
        "base": base,
        "version": kept.version,
        "config": kept.config.model_dump(mode="json"),
        "reverting": kept.reverting,
        "by": by,
    }


def _kept(entry: Mapping[str, Any]) -> Kept:
    config = OptimizationConfig(**entry["config"])
    reverting = bool(entry.get("reverting"))
    return Kept(config=config, version=int(entry["version"]), reverting=reverting, **entry.get("by", {}))


def _write(path: Path, content: JsonObject) -> None:
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock ends with the process, however that ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
