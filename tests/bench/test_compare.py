"""A comparison is fair: every candidate meets every window, in turning order, pair by pair."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadwise.bench.compare import compare
from loadwise.bench.report import comparison_rows, interval, markdown, member_shares
from loadwise.bench.runner import Run
from loadwise.bench.summary import summarize
from loadwise.decision.facts import Objectives

GOODPUT = {"auto": 3.0, "fast": 2.0, "accurate": 1.0}


def run_of(model: str, offset: int, quality: float | None = 0.5) -> Run:
    empty = summarize(model, [], 10.0, Objectives(), {})
    goodput = GOODPUT[model] * (1 + offset)
    summary = replace(
        empty,
        goodput_per_s=goodput,
        quality_served=quality,
        answered=10,
        requests=10,
        member_shares={"fast": 0.25, "accurate": 0.75} if model == "auto" else {model: 1.0},
    )
    return Run(summary=summary, samples=(), objectives=Objectives())


class Bench:
    """Remembers what was run, and the rests between."""

    def __init__(self, quality: float | None = 0.5) -> None:
        self.order: list[tuple[str, int]] = []
        self.rests: list[float] = []
        self.quality = quality

    async def run_one(self, model: str, offset: int) -> Run:
        self.order.append((model, offset))
        return run_of(model, offset, self.quality)

    async def pause(self, seconds: float) -> None:
        self.rests.append(seconds)


async def test_candidates_take_turns_at_every_offset() -> None:
    bench = Bench()
    await compare(bench.run_one, "auto", ["fast", "accurate"], 3, settle_s=2.0, pause=bench.pause)
    assert bench.order == [
        ("auto", 0), ("fast", 0), ("accurate", 0),
        ("fast", 1), ("accurate", 1), ("auto", 1),
        ("accurate", 2), ("auto", 2), ("fast", 2),
    ]  # fmt: skip
    assert bench.rests == [2.0] * 9


async def test_the_optimised_route_is_held_against_each_member_pair_by_pair() -> None:
    bench = Bench()
    comparison = await compare(bench.run_one, "auto", ["fast", "accurate"], 3, pause=bench.pause)
    against_fast, against_accurate = comparison.contrasts
    assert comparison.best_member == "fast"
    assert against_fast.goodput_difference_per_s.mean == pytest.approx(2.0)
    assert against_accurate.goodput_ratio is not None
    assert against_accurate.goodput_ratio.mean == pytest.approx(3.0)
    assert against_accurate.goodput_ratio.low == pytest.approx(3.0)
    assert against_accurate.quality_difference is not None
    assert against_accurate.quality_difference.mean == 0.0


async def test_an_unknown_quality_gives_no_quality_difference() -> None:
    bench = Bench(quality=None)
    comparison = await compare(bench.run_one, "auto", ["fast"], 2, pause=bench.pause)
    assert comparison.contrasts[0].quality_difference is None
    assert "| - |" in markdown(comparison)


async def test_the_tables_have_a_line_per_candidate() -> None:
    bench = Bench()
    comparison = await compare(bench.run_one, "auto", ["fast", "accurate"], 2, pause=bench.pause)
    rows = comparison_rows(comparison)
    assert [row[0] for row in rows] == ["auto", "fast", "accurate"]
    assert rows[0][2] == "4.50"
    assert rows[0][-1] == "accurate 75 %, fast 25 %"
    assert markdown(comparison).count("\n") == 5
    assert set(comparison.as_json()["runs"]) == {"auto", "fast", "accurate"}


def test_shares_over_several_runs_weigh_by_answers() -> None:
    summaries = [run_of("auto", 0).summary, replace(run_of("fast", 0).summary, answered=30)]
    assert member_shares(summaries) == {"fast": pytest.approx(0.8125), "accurate": pytest.approx(0.1875)}


def test_intervals_are_shown_as_far_as_they_are_known() -> None:
    from loadwise.bench.intervals import Interval

    assert interval(None) == "-"
    assert interval(Interval(1.0, None, None)) == "1.00"
    assert interval(Interval(1.0, 0.5, 1.5)) == "1.00 [0.50, 1.50]"
