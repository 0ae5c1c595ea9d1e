"""One line of the table: a form of the model, what it took, how fast it is, how far it agrees."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from pathlib import Path
from typing import Any

from loadwise.compiler.timing import median_interval
from loadwise.torch_engine.agreement import Agreement

CONCURRENCIES = (1, 8, 32)


@dataclass(slots=True, kw_only=True)
class Row:
    """Figures are None, and `reason` says why, for what was not run."""

    backend: str
    mode: str
    quantised: bool = False
    reason: str = ""
    build_s: float | None = None
    memory_bytes: int | None = None
    agreement: Agreement | None = None
    # What was made and is opened by the next start.
    package: Path | None = None
    # Tokens per second of every run, by concurrency.
    runs: dict[int, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Backend and mode."""
        return f"{self.backend}/{self.mode}"

    @property
    def quality(self) -> float | None:
        """As a share of the model's own, by what its loss on the texts is higher."""
        judged = self.agreement
        return None if judged is None else exp(-max(0.0, judged.loss - judged.loss_of_original))

    @property
    def serves(self) -> bool:
        """Whether it was measured and answers as the model does; a variant only has to be finite."""
        judged = self.agreement
        if not self.runs or judged is None:
            return False
        return judged.finite if self.quantised else judged.wrong is None

    def tokens_per_s(self, concurrency: int) -> float | None:
        """The median."""
        runs = self.runs.get(concurrency)
        return statistics.median(runs) if runs else None

    def step_ms(self, concurrency: int) -> float | None:
        """Time between two tokens of one request."""
        speed = self.tokens_per_s(concurrency)
        return None if speed is None else concurrency / speed * 1000

    def speedup(self, base: Row) -> tuple[float, float, float] | None:
        """Against `base` over all concurrencies (geometric mean), with the interval of runs in turns."""
        pairs = [
            [a / b for a, b in zip(self.runs[count], base.runs[count], strict=True)]
            for count in self.runs
            if count in base.runs
        ]
        if not pairs:
            return None
        whole = [exp(statistics.fmean(log(ratio) for ratio in run)) for run in zip(*pairs, strict=True)]
        return (statistics.median(whole), *median_interval(whole))

    def as_json(self, base: Row | None) -> dict[str, Any]:
        """Every figure by name."""
        judged = self.agreement
        speedup = None if base is None else self.speedup(base)
        return {
            "backend": self.backend,
            "mode": self.mode,
            "quantised": self.quantised,
            "run": bool(self.runs),
            "reason": self.reason,
            "build_s": self.build_s,
            "memory_bytes": self.memory_bytes,
            "tokens_per_s": {str(count): self.tokens_per_s(count) for count in self.runs},
            "step_ms": {str(count): self.step_ms(count) for count in self.runs},
            "runs_tokens_per_s": {str(count): values for count, values in self.runs.items()},
            "speedup": None if speedup is None else speedup[0],
            "speedup_interval": None if speedup is None else speedup[1:],
            "agreement": None if judged is None else judged.as_json(),
            "quality": self.quality,
            "package": None if self.package is None else _package(self.package),
        }


def _package(folder: Path) -> dict[str, Any] | None:
    """None where it is gone by now: stores let go of what they have no room for."""
    try:
        size = sum(file.stat().st_size for file in folder.iterdir())
    except FileNotFoundError:
        return None
    return {"path": str(folder), "bytes": size}


def recommended(rows: Sequence[Row]) -> Row | None:
    """The fastest unquantised form that answers as the model does; None when nothing was measured."""
    able = [row for row in rows if row.serves and not row.quantised]
    return max(able, key=_speed, default=None)


def _speed(row: Row) -> float:
    speeds: Mapping[int, float | None] = {count: row.tokens_per_s(count) for count in row.runs}
    return statistics.fmean(log(speed) for speed in speeds.values() if speed)
