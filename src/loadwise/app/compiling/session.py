"""From a model folder to the table: every form opened within the budget, then measured side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from loadwise.app.compiling.candidates import Candidate, Candidates, Opened
from loadwise.app.compiling.row import Row, recommended
from loadwise.app.compiling.speed import Course
from loadwise.compiler.backends.family import resident_bytes
from loadwise.compiler.store.identity import machine
from loadwise.engines.chosen import Choice, remember
from loadwise.engines.folders import inspect
from loadwise.errors import ConfigurationError, LoadwiseError
from loadwise.ports import Clock
from loadwise.settings import Settings

Say = Callable[[str], None]


class Session:
    """One run of `loadwise compile`; no form is begun once `budget_s` has passed."""

    def __init__(self, folder: Path, settings: Settings, clock: Clock, say: Say, budget_s: float) -> None:
        self._folder = inspect(folder)
        self._candidates = Candidates(folder, settings, clock, say)
        self._cache_dir = settings.cache_dir
        self._clock = clock
        self._say = say
        self._ends_s = clock.monotonic_s() + budget_s
        self._opened: dict[str, Opened] = {}

    async def run(self, backends: Sequence[str], runs: int) -> dict[str, Any]:
        """Rows, the recommendation, and what they were measured on; everything opened is closed again."""
        wanted = chosen(self._candidates.all(), backends)
        try:
            rows = [await self._row(candidate) for candidate in wanted]
            await self._measure(rows, runs)
        finally:
            for opened in self._opened.values():
                await opened.engine.close()
                opened.close()
        best, base = recommended(rows), rows[0] if rows[0].runs else None
        if best is not None:
            self._remember(best)
        return {
            "model": self._folder.path.name,
            "machine": machine()[:12],
            "runs": runs,
            "rows": [row.as_json(base) for row in rows],
            "recommended": None if best is None else {"backend": best.backend, "mode": best.mode},
        }

    def _remember(self, best: Row) -> None:
        engine = "openvino" if best.backend == "openvino" else "torch"
        remember(self._cache_dir, self._folder.path, Choice(engine, best.mode))

    async def _row(self, candidate: Candidate) -> Row:
        row = Row(backend=candidate.backend, mode=candidate.mode, quantised=candidate.quantised)
        if self._clock.monotonic_s() > self._ends_s:
            row.reason = "not run: the budget was used up"
            return row
        self._say(f"Making {row.name}")
        started_s, before = self._clock.monotonic_s(), resident_bytes(psutil.Process().pid)
        try:
            opened = await candidate.open()
        except LoadwiseError as error:
            row.reason = str(error)
            return row
        row.build_s = self._clock.monotonic_s() - started_s
        row.memory_bytes = max(0, resident_bytes(psutil.Process().pid) - before)
        row.agreement = opened.agreement
        self._opened[row.name] = opened
        return row

    async def _measure(self, rows: Sequence[Row], runs: int) -> None:
        self._say(f"Measuring {len(self._opened)} forms in {runs} runs each, in turns")
        vocabulary = int(self._folder.config["vocab_size"])
        course = Course(self._clock, vocabulary)
        engines = {name: opened.engine for name, opened in self._opened.items()}
        found = await course.interleaved(engines, runs)
        for row in rows:
            row.runs = found.get(row.name, {})


def chosen(candidates: Sequence[Candidate], backends: Sequence[str]) -> list[Candidate]:
    """Eager and those of the named backends; "all" names every one."""
    known = {candidate.backend for candidate in candidates}
    for name in backends:
        if name != "all" and name not in known:
            raise ConfigurationError(
                f"Unknown backend {name!r}. Choose all, {', '.join(sorted(known))}.", field="--backend"
            )
    return [
        candidate
        for candidate in candidates
        if candidate.mode == "eager" or "all" in backends or candidate.backend in backends
    ]
