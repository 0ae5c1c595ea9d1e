"""Applied configurations outlive a restart, unless the settings they were applied to changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from loadwise.clock import SystemClock
from loadwise.errors import ConfigurationError
from loadwise.logs import get_logger
from loadwise.ports import Clock
from loadwise.settings import OptimizationConfig
from loadwise.telemetry.aside import set_aside

log = get_logger(__name__)


def fingerprint(config: OptimizationConfig) -> str:
    """Equal for equal settings, across processes."""
    values = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(values.encode()).hexdigest()


class ConfigStore:
    """One JSON file under the state folder; without a folder nothing is kept.

    `base` is the configuration as file, environment and command line gave it: what was applied on
    top of another base is not taken over.
    """

    def __init__(self, folder: Path | None, base: OptimizationConfig, clock: Clock | None = None) -> None:
        self.set_aside: Path | None = None
        self._clock: Clock = clock or SystemClock()
        self._path = None if folder is None else folder / "optimization.json"
        self._base = base

    def load(self) -> tuple[OptimizationConfig, int]:
        """The last applied configuration and its version, or the base with version 1.

        A file that cannot be understood is set aside with the ending `.corrupt-TIMESTAMP`.
        """
        if self._path is None or not self._path.exists():
            return self._base, 1
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            if kept["base"] != fingerprint(self._base):
                log.info("applied_configuration_dropped", reason="the settings changed since it was applied")
                return self._base, 1
            return OptimizationConfig(**kept["config"]), int(kept["version"])
        except (OSError, ValueError, KeyError, TypeError, ConfigurationError) as error:
            return self._set_aside(error)

    def _set_aside(self, error: Exception) -> tuple[OptimizationConfig, int]:
        path = self._path
        log.warning("applied_configuration_unreadable", path=str(path), reason=str(error))
        if path is not None and path.is_file():
            try:
                self.set_aside = set_aside(path, self._clock.wall_s())
            except OSError as fault:
                log.warning("not_set_aside", path=str(path), reason=str(fault))
        return self._base, 1

    def save(self, config: OptimizationConfig, version: int) -> None:
        """The configuration is on disk, whole, readable by its owner only; `OSError` when it cannot be."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = {"base": fingerprint(self._base), "version": version, "config": config.model_dump(mode="json")}
        fresh = self._path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(kept, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
