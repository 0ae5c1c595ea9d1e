"""Which backend builds which mode, and where good builds are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loadwise.compiler.backends import BACKENDS, default_backend
from loadwise.compiler.keeping import KeepingBackend
from loadwise.compiler.store import PackageStore
from loadwise.decision.build_facts import EXPECTED, UNKNOWN_GAIN, BuildOption
from loadwise.errors import ConfigurationError
from loadwise.ports import Availability, BuildBackend, BuildRequest


class Workshop:
    """The backends of a compiler by their modes; a mode belongs to one backend."""

    def __init__(self, backends: Sequence[BuildBackend], store: PackageStore | None = None) -> None:
        self._backends = tuple(backends)
        self._by_mode = {mode: backend for backend in backends for mode in backend.forms}
        self._store = store

    @classmethod
    def of(cls, backend: BuildBackend | None) -> Workshop:
        """One backend that keeps nothing: the given one, or the default."""
        return cls([backend or default_backend()])

    @classmethod
    def keeping(cls, names: Sequence[str], store: PackageStore, scratch: Path) -> Workshop:
        """The named backends, whose good builds are kept in `store`; work in progress is under `scratch`."""
        unknown = [name for name in names if name not in BACKENDS]
        if unknown:
            raise ConfigurationError(
                f"Unknown build backend {unknown[0]!r}. Choose {', '.join(BACKENDS)}.", field="build_backends"
            )
        return cls([KeepingBackend(BACKENDS[name](scratch), store, scratch) for name in names], store)

    @property
    def modes(self) -> tuple[str, ...]:
        """Every mode, whether it can be built here or not."""
        return tuple(self._by_mode)

    @property
    def keeps(self) -> bool:
        """Whether good builds outlive the process."""
        return self._store is not None

    @property
    def store_problem(self) -> str:
        """Why nothing is kept; empty while all is well."""
        return "" if self._store is None else self._store.problem

    def backend(self, mode: str) -> BuildBackend:
        """The one that builds `mode`."""
        return self._by_mode[mode]

    def available(self) -> Availability:
        """Whether any backend works here; otherwise what the first one misses."""
        found = [backend.available() for backend in self._backends]
        return next((availability for availability in found if availability.ok), found[0])

    def options(self) -> list[BuildOption]:
        """The unquantised modes that can be built here, with what is expected of them."""
        able = [backend for backend in self._backends if backend.available().ok]
        modes = [mode for backend in able for mode, form in backend.forms.items() if not form.quantised]
        return [BuildOption(mode, *EXPECTED.get(mode, UNKNOWN_GAIN)) for mode in modes]

    def keeps_build(self, request: BuildRequest) -> bool:
        """Whether the build for `request` is in the store and can be opened here."""
        backend = self._by_mode[request.mode]
        return isinstance(backend, KeepingBackend) and backend.available().ok and backend.keeps(request)
