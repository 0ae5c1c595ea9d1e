"""A build that fails when it is told to: the demonstration's compile failure."""

from __future__ import annotations

from loadwise.errors import BuildError
from loadwise.ports import Availability, BuildBackend, BuildRequest, Built


class FaultyBackend:
    """Another backend, whose builds fail while it is told so."""

    def __init__(self, backend: BuildBackend) -> None:
        self.name = backend.name
        self.forms = backend.forms
        self._backend = backend
        self.fails = False

    def available(self) -> Availability:
        """As the other backend is; a failure needs no compiler."""
        return Availability(ok=True) if self.fails else self._backend.available()

    def build(self, request: BuildRequest) -> Built:
        """The other backend's build, or `BuildError`."""
        if self.fails:
            raise BuildError("injected by the demonstration", remedy="POST /v1/optimization/force_recompile")
        return self._backend.build(request)
