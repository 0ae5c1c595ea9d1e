"""Seeded workloads: when requests come and how long they are, the same for one seed everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

from loadwise.errors import ConfigurationError

# The 99th percentile of a standard normal distribution.
_Z99 = 2.3263478740408408


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as a workload sees it: seconds after the start, and lengths in tokens (each >= 1)."""

    t_s: float
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Log-normal prompt and answer lengths in tokens, given by median and 99th percentile.

    The defaults are the quantiles of the Azure conversation trace of 2023 (1,020 and 4,142 tokens of
    prompt, 129 and 601 of answer) divided by 8; prompt and answer together stay within the context.
    """

    input_median: float = 128.0
    input_p99: float = 518.0
    output_median: float = 16.0
    output_p99: float = 75.0
    context_tokens: int = 1000

    def __post_init__(self) -> None:
        """Raises `ConfigurationError` where a median is below 1 or above its 99th percentile."""
        for name, median, p99 in (
            ("input", self.input_median, self.input_p99),
            ("output", self.output_median, self.output_p99),
        ):
            if not 1.0 <= median <= p99 < math.inf:
                raise ConfigurationError(
                    f"{name} lengths need 1 <= median <= p99, not {median:g} and {p99:g}",
                    field=f"{name}_median",
                )
        if self.context_tokens < 2:
            raise ConfigurationError(
                f"context_tokens must be at least 2, not {self.context_tokens}", field="context_tokens"
            )

    def draw(self, chance: Random) -> tuple[int, int]:
        """One request's (input_tokens, output_tokens)."""
        output = min(_log_normal(chance, self.output_median, self.output_p99), self.context_tokens - 1)
        prompt = min(_log_normal(chance, self.input_median, self.input_p99), self.context_tokens - output)
        return prompt, output


def _log_normal(chance: Random, median: float, p99: float) -> int:
    sigma = math.log(p99 / median) / _Z99
    return max(1, round(median * math.exp(sigma * chance.gauss(0.0, 1.0))))


def poisson(
    rate_per_s: float, duration_s: float, seed: int, lengths: Lengths | None = None
) -> Iterator[Arrival]:
    """Independent arrivals at a constant rate."""
    return _arrivals(lambda _t_s: rate_per_s, rate_per_s, duration_s, seed, lengths)


def bursts(
    rate_per_s: float,
    duration_s: float,
    seed: int,
    lengths: Lengths | None = None,
    *,
    on_s: float = 10.0,
    off_s: float = 20.0,
    ratio: float = 8.0,
) -> Iterator[Arrival]:
    """On and off phases in turn, `ratio` times as busy when on; `rate_per_s` is a period's mean."""
    if min(on_s, off_s) <= 0 or ratio < 1:
        raise ConfigurationError(
            f"bursts need on_s > 0, off_s > 0 and ratio >= 1, not {on_s:g}, {off_s:g} and {ratio:g}"
        )
    period_s = on_s + off_s
    quiet = rate_per_s * period_s / (on_s * ratio + off_s)

    def rate_at(t_s: float) -> float:
        return quiet if t_s % period_s < off_s else quiet * ratio

    return _arrivals(rate_at, quiet * ratio, duration_s, seed, lengths)


def diurnal(
    rate_per_s: float,
    duration_s: float,
    seed: int,
    lengths: Lengths | None = None,
    *,
    period_s: float | None = None,
    depth: float = 0.8,
) -> Iterator[Arrival]:
    """A day from night to night: a sine around the mean rate, `depth` (0..1) of it deep.

    The period is the whole duration unless given.
    """
    if not 0.0 <= depth <= 1.0:
        raise ConfigurationError(f"depth must be in 0..1, not {depth:g}", field="depth")
    day_s = duration_s if period_s is None else period_s
    if day_s <= 0:
        raise ConfigurationError(f"period_s must be above 0, not {day_s:g}", field="period_s")

    def rate_at(t_s: float) -> float:
        return rate_per_s * (1.0 - depth * math.cos(2.0 * math.pi * t_s / day_s))

    return _arrivals(rate_at, rate_per_s * (1.0 + depth), duration_s, seed, lengths)


def steps(
    rate_per_s: float,
    duration_s: float,
    seed: int,
    lengths: Lengths | None = None,
    *,
    levels: tuple[float, ...] = (0.5, 1.0, 2.0, 1.0, 0.5),
) -> Iterator[Arrival]:
    """Equal parts of constant rate: each level times `rate_per_s` (the default levels have mean 1)."""
    if not levels or min(levels) < 0 or max(levels) <= 0:
        raise ConfigurationError(f"levels must be at least one number above 0, not {levels}", field="levels")

    def rate_at(t_s: float) -> float:
        return rate_per_s * levels[min(int(t_s / duration_s * len(levels)), len(levels) - 1)]

    return _arrivals(rate_at, rate_per_s * max(levels), duration_s, seed, lengths)


Generator = Callable[[float, float, int, Lengths | None], Iterator[Arrival]]

# Name on the command line -> generator.
GENERATORS: Mapping[str, Generator] = {
    "poisson": poisson,
    "bursts": bursts,
    "diurnal": diurnal,
    "steps": steps,
}


def generate(
    name: str, rate_per_s: float, duration_s: float, seed: int, lengths: Lengths | None = None
) -> Iterator[Arrival]:
    """The arrivals of the built-in workload `name`; `ConfigurationError` for a name that is none."""
    if name not in GENERATORS:
        raise ConfigurationError(
            f"Unknown workload {name!r}. Choose {', '.join(GENERATORS)}.", field="workload"
        )
    return GENERATORS[name](rate_per_s, duration_s, seed, lengths)


def _arrivals(
    rate_at: Callable[[float], float],
    peak_per_s: float,
    duration_s: float,
    seed: int,
    lengths: Lengths | None,
) -> Iterator[Arrival]:
    """Checks at the call, not at the first arrival."""
    if not 0.0 < peak_per_s < math.inf:
        raise ConfigurationError(
            f"rate must be above 0 requests per second, not {peak_per_s:g}", field="rate"
        )
    if not 0.0 < duration_s < math.inf:
        raise ConfigurationError(f"duration must be above 0 seconds, not {duration_s:g}", field="duration")
    return _thinned(rate_at, peak_per_s, duration_s, Random(seed), lengths or Lengths())


def _thinned(
    rate_at: Callable[[float], float], peak_per_s: float, duration_s: float, chance: Random, lengths: Lengths
) -> Iterator[Arrival]:
    """An inhomogeneous Poisson process by thinning (Lewis and Shedler, 1979)."""
    t_s = chance.expovariate(peak_per_s)
    while t_s < duration_s:
        if chance.random() * peak_per_s < rate_at(t_s):
            yield Arrival(t_s, *lengths.draw(chance))
        t_s += chance.expovariate(peak_per_s)
