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
from loadwise.engines.chosen import Choice, remember, remember_qualities
from loadwise.engines.folders import inspect
from loadwise.errors import ConfigurationError, LoadwiseError
from loadwise.ports import Clock
from loadwise.settings import Settings

Say = Callable[[str], None]
# Of why a form was not run; compilers and runtimes say more than anybody reads.
SHOWN_CHARS = 300


class Session:
    """One run of `loadwise compile`; no form is begun once `budget_s` has passed."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        clock: Clock,
        say: Say,
        budget_s: float,
        device: str = "cpu",
    ) -> None:
        self._folder = inspect(folder)
        self._candidates = Candidates(folder, settings, clock, say, device, self._left_s)
        self._device = device
        self._cache_dir = settings.cache_dir
        self._clock = clock
        self._say = say
        self._ends_s = clock.monotonic_s() + budget_s
        self._opened: dict[str, Opened] = {}

    async def run(self, backends: Sequence[str], runs: int) -> dict[str, Any]:
        """Rows, the recommendation, and what they were measured on; everything opened is closed again."""
        wanted = chosen(self._candidates.all(), backends)
        try:
            rows = [
                await self._row(candidate, f"{place} of {len(wanted)}")
                for place, candidate in enumerate(wanted, 1)
            ]
            await self._measure(rows, runs)
        finally:
            for opened in self._opened.values():
                await opened.engine.close()
                opened.close()
        best, base = recommended(rows), rows[0] if rows[0].runs else None
        self._remember(best, rows)
        return {
            "model": self._folder.path.name,
            "folder": str(self._folder.path),
            "machine": machine()[:12],
            "device": self._device,
            "runs": runs,
            "rows": [row.as_json(base) for row in rows],
            "recommended": None if best is None else {"backend": best.backend, "mode": best.mode},
        }

    def _remember(self, best: Row | None, rows: Sequence[Row]) -> None:
        """The next start serves the best form, and knows the quality of every variant that was measured."""
        # On another device torch serves, with the builds that are kept.
        if best is not None and self._device == "cpu":
            engine = "openvino" if best.backend == "openvino" else "torch"
            remember(self._cache_dir, self._folder.path, Choice(engine, best.mode))
        found = {row.name: row.quality for row in rows if row.quantised and row.serves}
        known = {name: quality for name, quality in found.items() if quality is not None}
        if known:
            remember_qualities(self._cache_dir, self._folder.path, known)

    async def _row(self, candidate: Candidate, place: str) -> Row:
        row = Row(backend=candidate.backend, mode=candidate.mode, quantised=candidate.quantised)
        left_s = self._left_s()
        if left_s < 0:
            row.reason = "not run: the budget was used up; raise --budget"
            return row
        self._say(f"Making {row.name} ({place}; {left_s:.0f} s of the budget are left)")
        started_s, before = self._clock.monotonic_s(), resident_bytes(psutil.Process().pid)
        try:
            opened = await candidate.open()
        except LoadwiseError as error:
            row.reason = " ".join(str(error).split())[:SHOWN_CHARS]
            return row
        row.build_s = self._clock.monotonic_s() - started_s
        row.memory_bytes = max(0, resident_bytes(psutil.Process().pid) - before)
        row.agreement, row.package = opened.agreement, opened.package
        self._opened[row.name] = opened
        return row

    def _left_s(self) -> float:
        """Of the budget."""
        return self._ends_s - self._clock.monotonic_s()

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
