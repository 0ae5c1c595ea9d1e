"""The latest states that are kept by name: told from any thread, written by the journal's own."""

from __future__ import annotations

import threading
from collections.abc import Mapping


class States:
    """What waits to be written, and all of it for a new file; None is a state that is no longer."""

    def __init__(self) -> None:
        self._all: dict[str, bytes] = {}
        self._waiting: dict[str, bytes | None] = {}
        self._lock = threading.Lock()

    def keep(self, states: Mapping[str, bytes | None]) -> None:
        """These wait to be written, in the place of earlier ones of their names."""
        with self._lock:
            self._waiting.update(states)
            for name, body in states.items():
                if body is None:
                    self._all.pop(name, None)
                else:
                    self._all[name] = body

    def take(self) -> dict[str, bytes | None]:
        """What waited; it no longer does."""
        with self._lock:
            taken, self._waiting = self._waiting, {}
            return taken

    def put_back(self, taken: Mapping[str, bytes | None]) -> None:
        """What could not be written waits again, unless a later state does."""
        with self._lock:
            self._waiting = {**taken, **self._waiting}

    def replace(self, states: Mapping[str, bytes | None]) -> None:
        """These wait, and nothing that was told before."""
        with self._lock:
            self._waiting = dict(states)
            self._all = {name: body for name, body in states.items() if body is not None}

    def renew(self) -> None:
        """Everything waits: the file is a new one."""
        with self._lock:
            self._waiting = {**self._all, **self._waiting}
