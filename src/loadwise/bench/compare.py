"""Optimisation against each member fixed: the same requests at the same times, pair by pair."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from loadwise.bench.intervals import Interval, paired_difference, paired_ratio
from loadwise.bench.runner import Run
from loadwise.bench.summary import Summary

# Replays run number `run` of the workload against a model.
RunOne = Callable[[str, int], Awaitable[Run]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """The optimised route against one member, over the same windows."""

    member: str
    goodput_difference_per_s: Interval
    # None where a run had no goodput at all.
    goodput_ratio: Interval | None
    # None where a quality is unknown.
    quality_difference: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Every run of every candidate, and the optimised route against each fixed member."""

    optimised: str
    # model -> its runs, in order of offset.
    runs: Mapping[str, Sequence[Run]]
    contrasts: Sequence[Contrast]

    def summaries(self, model: str) -> list[Summary]:
        """A candidate's summaries, in order of offset."""
        return [run.summary for run in self.runs[model]]

    @property
    def best_member(self) -> str:
        """The fixed member of the highest mean goodput."""
        members = [model for model in self.runs if model != self.optimised]
        return max(members, key=lambda model: fmean(s.goodput_per_s for s in self.summaries(model)))

    def as_json(self) -> dict[str, Any]:
        """Contrasts with their intervals, every run's figures, and the optimised runs over time."""
        return {
            "optimised": self.optimised,
            "best_member": self.best_member,
            "contrasts": [asdict(contrast) for contrast in self.contrasts],
            "runs": {model: [run.summary.as_json() for run in runs] for model, runs in self.runs.items()},
            "timelines": [run.timeline() for run in self.runs[self.optimised]],
        }


async def compare(
    run_one: RunOne,
    optimised: str,
    members: Sequence[str],
    offsets: int,
    *,
    settle_s: float = 5.0,
    pause: Callable[[float], Awaitable[Any]] = asyncio.sleep,
) -> Comparison:
    """All candidates at every offset, interleaved; the order turns so that none is always first."""
    candidates = [optimised, *members]
    runs: dict[str, list[Run]] = {model: [] for model in candidates}
    for offset in range(offsets):
        turn = offset % len(candidates)
        for model in candidates[turn:] + candidates[:turn]:
            runs[model].append(await run_one(model, offset))
            # The next candidate meets a quiet server.
            await pause(settle_s)
    contrasts = [_contrast(member, runs[optimised], runs[member]) for member in members]
    return Comparison(optimised=optimised, runs=runs, contrasts=contrasts)


def _contrast(member: str, optimised: Sequence[Run], fixed: Sequence[Run]) -> Contrast:
    ours, theirs = ([run.summary.goodput_per_s for run in runs] for runs in (optimised, fixed))
    pairs = [
        (a.summary.quality_served, b.summary.quality_served) for a, b in zip(optimised, fixed, strict=True)
    ]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return Contrast(
        member=member,
        goodput_difference_per_s=paired_difference(ours, theirs),
        goodput_ratio=paired_ratio(ours, theirs),
        quality_difference=(
            paired_difference([a for a, _ in known], [b for _, b in known])
            if len(known) == len(pairs)
            else None
        ),
    )
