"""A backend whose good builds outlive the process: kept ones are opened instead of made."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from loadwise.compiler.backends.exported import make_private_folder
from loadwise.compiler.store import PackageStore
from loadwise.compiler.store.identity import identity
from loadwise.errors import BuildDeclinedError, BuildError
from loadwise.ports import Availability, BuildRequest, Built, Form, PackagingBackend, Verdict


class KeepingBackend:
    """Wraps a backend; a package that turns out bad is forgotten, and the next build makes it anew."""

    def __init__(self, inner: PackagingBackend, store: PackageStore, scratch: Path | None = None) -> None:
        self.inner = inner
        self.store = store
        self.name = inner.name
        self.forms: Mapping[str, Form] = inner.forms
        self._scratch = scratch

    def available(self) -> Availability:
        """As the backend that makes the packages."""
        return self.inner.available()

    def build(self, request: BuildRequest) -> Built:
        """From the store where it is kept, else made; kept when its verdict is good.

        `BuildDeclinedError` where it may only be opened, and cannot be.
        """
        facts = identity(self.inner, request)
        kept = None if request.fresh else self._kept(request, facts["name"])
        if kept is None and request.kept_only:
            raise BuildDeclinedError(
                "No build is kept that can be opened, and none can be made beside requests on this GPU.",
                remedy="Build beforehand, or drain every member on that GPU, then force_recompile.",
            )
        return kept or self._made(request, facts)

    def keeps(self, request: BuildRequest) -> bool:
        """Whether a build would be opened, not made."""
        with self.store.find(str(identity(self.inner, request)["name"])) as folder:
            return folder is not None

    def _kept(self, request: BuildRequest, name: str) -> Built | None:
        with self.store.find(name) as folder:
            if folder is None:
                return None
            try:
                built = self.inner.open(request, folder)
            except (BuildError, RuntimeError, OSError, ValueError, KeyError) as error:
                self.store.problem = f"A kept build could not be opened ({error}); it is made anew."
                built = None
        if built is None:
            self.store.discard(name)
            return None

        def settle(verdict: Verdict) -> None:
            # One that is slower today may be faster tomorrow.
            if verdict is Verdict.WRONG:
                self.store.discard(name)

        return replace(built, kept=True, settle=settle)

    def _made(self, request: BuildRequest, facts: dict[str, object]) -> Built:
        folder = make_private_folder(self._scratch)
        try:
            self.inner.make(request, folder)
            built = self.inner.open(request, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

        def settle(verdict: Verdict) -> None:
            if verdict is Verdict.PROMOTED:
                self.store.put(str(facts["name"]), folder, facts)
            shutil.rmtree(folder, ignore_errors=True)

        return replace(built, settle=settle)
