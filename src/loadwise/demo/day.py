"""The day: traffic from night to night with bursts, and what goes wrong at which hour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from loadwise.simulation.workloads import Arrival, Lengths, bursts, diurnal

HOURS: Final = 24.0
LENGTHS: Final = Lengths(input_median=64, input_p99=256, output_median=16, output_p99=48)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens at an hour of the day (0..24): to a member, or to builds."""

    hour: float
    story: str
    # A fault of a simulated engine; builds have one of their own.
    what: str = ""
    member: str | None = None


EVENTS: Final = (
    Event(hour=8.0, story="The build of 'large' fails."),
    Event(hour=13.0, story="'regional' answers nothing but errors.", member="regional", what="errors"),
    Event(hour=16.0, story="'regional' is mended.", member="regional", what="none"),
    Event(hour=19.0, story="'large' becomes eight times slower.", member="large", what="slow"),
    Event(hour=20.5, story="'large' is mended.", member="large", what="none"),
)


def seconds(hour: float, duration_s: float) -> float:
    """When an hour of the day comes, in seconds after the start."""
    return duration_s * hour / HOURS


def hour_of(t_s: float, duration_s: float) -> str:
    """The time of day as HH:MM."""
    minutes = round(t_s / duration_s * HOURS * 60.0)
    return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"


def traffic(rate_per_s: float, duration_s: float, seed: int) -> Iterator[Arrival]:
    """A day of requests around a mean rate: two thirds follow the sun, a third comes in bursts."""
    base = diurnal(rate_per_s * 2 / 3, duration_s, seed, LENGTHS)
    on_s = duration_s / 30.0
    extra = bursts(rate_per_s / 3, duration_s, seed + 1, LENGTHS, on_s=on_s, off_s=4 * on_s, ratio=6.0)
    yield from sorted([*base, *extra], key=lambda arrival: arrival.t_s)
