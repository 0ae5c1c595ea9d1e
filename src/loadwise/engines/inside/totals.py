"""What one process has heard of its engine: sums that only grow, and the scheduler's latest figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from loadwise.engines.inside.names import COUNTS, DURATIONS, GAUGES, durations, number


@dataclass(slots=True, kw_only=True)
class Totals:
    """Sums since a process started; seconds and tokens."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    first_token_s: float = 0.0
    first_tokens: int = 0
    per_token_s: float = 0.0
    tokens_after_first: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def continues(self, earlier: Totals) -> bool:
        """Whether these may be the same process's sums, later."""
        return all(getattr(self, f.name) >= getattr(earlier, f.name) for f in fields(self))

    def note(self, iteration: Any) -> None:
        """Adds one iteration's statistics."""
        self.prompt_tokens += int(number(iteration, COUNTS["prompt_tokens"]) or 0)
        self.output_tokens += int(number(iteration, COUNTS["output_tokens"]) or 0)
        first = durations(iteration, DURATIONS["first_token"])
        self.first_token_s += sum(first)
        self.first_tokens += len(first)
        later = durations(iteration, DURATIONS["per_token"])
        self.per_token_s += sum(later)
        self.tokens_after_first += len(later)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """One engine core's latest figures; None is "not said"."""

    heard_s: float
    running_requests: int | None = None
    waiting_requests: int | None = None
    kv_cache_usage_fraction: float | None = None


@dataclass(slots=True, kw_only=True)
class View:
    """What one API server process sees of the engine: its own requests, perhaps the scheduler's records."""

    process: str
    totals: Totals = field(default_factory=Totals)
    # By engine core; only the process that the engine tells has any.
    schedulers: dict[int, Scheduler] = field(default_factory=dict)
    # Records heard, and those that came faster than they were read.
    records: int = 0
    dropped: int = 0

    def note(self, core: int, scheduler: Any, iteration: Any, heard_s: float) -> None:
        """Takes one record of the engine's statistics in."""
        self.records += 1
        if scheduler is not None:
            self.schedulers[core] = _scheduler(scheduler, heard_s)
        if iteration is not None:
            self.totals.note(iteration)


def _scheduler(record: Any, heard_s: float) -> Scheduler:
    running = number(record, GAUGES["running_requests"])
    waiting = number(record, GAUGES["waiting_requests"])
    return Scheduler(
        heard_s=heard_s,
        running_requests=None if running is None else int(running),
        waiting_requests=None if waiting is None else int(waiting),
        kv_cache_usage_fraction=number(record, GAUGES["kv_cache_usage_fraction"]),
    )


def summed(totals: Iterable[Totals]) -> Totals:
    """All of them together."""
    return sum(totals, Totals())


def merged_schedulers(views: Iterable[View]) -> Mapping[int, Scheduler]:
    """Per engine core the newest figures that any process heard."""
    newest: dict[int, Scheduler] = {}
    for view in views:
        for core, found in view.schedulers.items():
            if core not in newest or found.heard_s > newest[core].heard_s:
                newest[core] = found
    return newest
