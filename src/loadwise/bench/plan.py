"""From the name of a workload to requests ready to be sent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loadwise.bench.client import Planned, body_of
from loadwise.bench.prompts import Prompts
from loadwise.errors import ConfigurationError
from loadwise.simulation.traces import Fitted, fit_lengths, load, to_rate, window
from loadwise.simulation.workloads import GENERATORS, Arrival, Lengths, generate


@dataclass(frozen=True, slots=True)
class Workload:
    """What is replayed: a built-in generator's name or a trace file, and how it is fitted."""

    source: str = "poisson"
    # Mean requests per second of each run; None keeps a trace's own.
    rate_per_s: float | None = None
    duration_s: float = 60.0
    seed: int = 0
    # Lengths are divided by this.
    scale_lengths: float = 1.0
    context_tokens: int = 1000

    def __post_init__(self) -> None:
        """Raises `ConfigurationError` where a rate, a duration or a divisor is not above 0."""
        for flag, value in (
            ("--rate", self.rate_per_s),
            ("--duration", self.duration_s),
            ("--scale-lengths", self.scale_lengths),
        ):
            if value is not None and not 0.0 < value < math.inf:
                raise ConfigurationError(f"{flag} must be above 0, not {value:g}.", field=flag)

    def changed_rate(self, rate_per_s: float) -> Workload:
        """The same workload at another rate."""
        return replace(self, rate_per_s=rate_per_s)


class Source:
    """A workload's arrivals, run by run; a trace is read once."""

    def __init__(self, workload: Workload, runs: int = 1) -> None:
        """Raises `ConfigurationError` for an unknown name, `TraceError` for a file that cannot be read."""
        self.workload = workload
        self.runs = runs
        self._trace: list[Arrival] | None = None
        if workload.source not in GENERATORS:
            self._trace = load(_trace_path(workload.source))
            longest_s = self._trace[-1].t_s
            if longest_s < workload.duration_s:
                raise ConfigurationError(
                    f"{workload.source} lasts {longest_s:g} s, less than --duration {workload.duration_s:g}.",
                    field="--duration",
                )
        elif workload.rate_per_s is None:
            raise ConfigurationError(
                f"The workload {workload.source!r} needs --rate (requests per second).", field="--rate"
            )

    def arrivals(self, run: int = 0, rate_per_s: float | None = None) -> Fitted:
        """The arrivals of run number `run`: another seed, or another window of the trace.

        Windows lie at equal distances over the trace; each is thinned or merged to the mean rate.
        """
        workload = self.workload if rate_per_s is None else self.workload.changed_rate(rate_per_s)
        if self._trace is None:
            return fit_lengths(
                self._generated(workload, run), workload.scale_lengths, workload.context_tokens
            )
        part = window(self._trace, self.offset_s(run), workload.duration_s)
        if workload.rate_per_s is not None:
            part = to_rate(part, workload.rate_per_s, workload.duration_s, workload.seed + run)
        return fit_lengths(part, workload.scale_lengths, workload.context_tokens)

    def offset_s(self, run: int) -> float:
        """Where in the trace run number `run` begins, in seconds; 0 for a generator."""
        if self._trace is None or self.runs < 2:
            return 0.0
        return (self._trace[-1].t_s - self.workload.duration_s) * (run % self.runs) / (self.runs - 1)

    @staticmethod
    def _generated(workload: Workload, run: int) -> list[Arrival]:
        # The generators' lengths fit the context before they are divided.
        lengths = Lengths(context_tokens=max(2, workload.context_tokens))
        rate_per_s = workload.rate_per_s or 0.0
        return list(generate(workload.source, rate_per_s, workload.duration_s, workload.seed + run, lengths))


def _trace_path(source: str) -> Path:
    path = Path(source)
    if not path.is_file():
        known = ", ".join(GENERATORS)
        raise ConfigurationError(f"--workload {source!r} is no file and none of {known}.", field="--workload")
    return path


def plan(
    model: str, arrivals: Sequence[Arrival], prompts: Prompts, *, first: int = 0, chat: bool = False
) -> list[Planned]:
    """Requests with their bodies, made before the start so that nothing but sending is left.

    `first` numbers the prompts: other numbers make other prompts, which no prefix cache knows.
    """
    return [
        Planned(
            t_s=arrival.t_s,
            body=body_of(
                model, prompts.make(first + number, arrival.input_tokens), arrival.output_tokens, chat=chat
            ),
            input_tokens=arrival.input_tokens,
            output_tokens=arrival.output_tokens,
        )
        for number, arrival in enumerate(arrivals)
    ]
