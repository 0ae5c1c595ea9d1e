"""Plots as inline SVG for documents that run no script: figures in, markup out; every text is escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from typing import Final

WIDTH: Final = 760
HEIGHT: Final = 190
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 24
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One series; None leaves a gap. `style` is a class of the document's own style sheet."""

    name: str
    values: Sequence[float | None]
    style: str = "a"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A horizontal line with its name."""

    name: str
    value: float


def over_time(
    title: str,
    labels: Sequence[str],
    lines: Sequence[Line],
    *,
    limits: Sequence[Limit] = (),
    unit: str = "",
    top: float | None = None,
) -> str:
    """Lines over equally spaced moments; `labels` name the moments. Empty where nothing was measured."""
    known = [value for line in lines for value in line.values if value is not None and isfinite(value)]
    if not known:
        return ""
    most = top or nice(max([*known, *(limit.value for limit in limits if limit.value <= 4 * max(known))]))
    parts = [_grid(most, unit), _times(labels)]
    parts += [_line(line, most) for line in lines]
    parts += [_limit(limit, most) for limit in limits if limit.value <= most]
    described = html.escape(f"{title}: {', '.join(line.name for line in lines)}")
    return (
        f'<figure><figcaption>{html.escape(title)}{_keys(lines)}</figcaption><svg viewBox="0 0 {WIDTH} '
        f'{HEIGHT}" role="img" aria-label="{described}">{"".join(parts)}</svg></figure>'
    )


def interval(value: float, low: float, high: float) -> str:
    """A figure and its interval (-1..1) around no difference."""
    reach = max(0.05, abs(low), abs(high)) * 1.15

    def x(at: float) -> str:
        return _number(WIDTH / 2 + (WIDTH / 2 - 30) * at / reach)

    label = html.escape(f"Gain {100 * value:+.1f} points, interval {100 * low:+.1f} to {100 * high:+.1f}")
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} 60" role="img" aria-label="{label}">'
        f'<line class="grid" x1="20" x2="{WIDTH - 20}" y1="26" y2="26"/>'
        f'<line class="limit" x1="{WIDTH // 2}" x2="{WIDTH // 2}" y1="8" y2="42"/>'
        f'<line class="reach" x1="{x(low)}" x2="{x(high)}" y1="26" y2="26"/>'
        f'<circle class="dot" cx="{x(value)}" cy="26" r="7"/>'
        f'<text x="{WIDTH // 2}" y="56" text-anchor="middle">no difference</text></svg></figure>'
    )


def nice(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten; 1 for nothing."""
    if value <= 0.0 or not isfinite(value):
        return 1.0
    # Near the ends of what a float holds, a step further would be 0 or infinite.
    value = min(max(value, 1e-300), 1e300)
    power = 10.0 ** floor(log10(value))
    return float(next(step * power for step in _STEPS if step * power >= value * (1 - 1e-12)))


def _number(value: float) -> str:
    return f"{value:.1f}"


def _y(value: float, most: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * min(1.0, max(0.0, value / most))


def _x(place: int, count: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (place / (count - 1) if count > 1 else 1.0)


def _grid(most: float, unit: str) -> str:
    rows = []
    for part in (0.0, 0.5, 1.0):
        y = _number(_y(part * most, most))
        rows.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        text = html.escape(f"{part * most:g}{unit}")
        rows.append(f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{text}</text>')
    return "".join(rows)


def _times(labels: Sequence[str]) -> str:
    if not labels:
        return ""
    places = sorted({0, len(labels) // 2, len(labels) - 1})
    anchors = {0: "start", len(labels) - 1: "end"}
    return "".join(
        f'<text x="{_number(_x(place, len(labels)))}" y="{HEIGHT - 6}" '
        f'text-anchor="{anchors.get(place, "middle")}">{html.escape(labels[place])}</text>'
        for place in places
    )


def _line(line: Line, most: float) -> str:
    runs: list[list[str]] = [[]]
    for place, value in enumerate(line.values):
        if value is None or not isfinite(value):
            runs.append([])
        else:
            runs[-1].append(f"{_number(_x(place, len(line.values)))},{_number(_y(value, most))}")
    # A single point has no length to be seen by.
    drawn = [run if len(run) > 1 else run * 2 for run in runs if run]
    path = "".join("M" + "L".join(run) for run in drawn)
    return f'<path class="line {html.escape(line.style)}" d="{path}"/>'


def _limit(limit: Limit, most: float) -> str:
    y = _number(_y(limit.value, most))
    return (
        f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text class="limit-name" x="{WIDTH - RIGHT}" y="{y}" dy="-4" text-anchor="end">'
        f"{html.escape(limit.name)}</text>"
    )


def _keys(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    return "".join(
        f' <span class="key {html.escape(line.style)}">{html.escape(line.name)}</span>' for line in lines
    )
