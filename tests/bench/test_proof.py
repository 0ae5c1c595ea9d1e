"""A few simulated weeks of the proof of improvement: what the full run promises holds in small."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WEEKS = 12


@pytest.fixture(scope="module")
def proof() -> Iterator[ModuleType]:
    pytest.importorskip("numpy")
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("proof")
    sys.path.remove(str(BENCHMARKS))
    sys.modules.pop("proof")


@pytest.mark.slow
def test_equal_policies_show_no_gain_and_a_true_one_is_covered(proof: ModuleType) -> None:
    equal, _, ten_points = (proof.simulate(scenario, WEEKS, seed=9) for scenario in proof.SCENARIOS[:3])
    assert equal["true_gain"] == pytest.approx(0.0, abs=1e-3)
    assert equal["gain_shown_at_some_look"] <= 1 / WEEKS
    assert equal["truth_covered_at_the_end"] >= 1 - 1 / WEEKS
    assert ten_points["true_gain"] == pytest.approx(0.10, abs=0.02)
    assert ten_points["control_requests_suspended"] > 0.005
    assert ten_points["gain_shown_at_some_look"] >= 0.8
    assert ten_points["truth_covered_at_every_look"] >= 1 - 1 / WEEKS
    # A control group of requests waits in the same queue and sees less than two thirds of the gain.
    assert ten_points["naive_bias"] < -0.03


def test_the_published_figures_keep_what_was_promised() -> None:
    published = json.loads((BENCHMARKS / "results" / "proof.json").read_text(encoding="utf-8"))
    found = {scenario["name"]: scenario for scenario in published["scenarios"]}
    assert min(scenario["weeks"] for scenario in published["scenarios"]) >= 1000
    equal = [each for name, each in found.items() if name.startswith("equal policies")]
    assert len(equal) == 4
    assert max(each["gain_shown_at_some_look"] for each in equal) <= 0.05
    assert min(each["truth_covered_at_every_look"] for each in found.values()) >= 0.93
    ten_points = found["a gain of ten points, a fifth of blocks"]
    dying = found["a gain of ten points, two deaths a day"]
    assert dying["deaths_per_week"] == pytest.approx(14.0, rel=0.1)
    assert dying["gain_shown_at_some_look"] >= 0.8
    assert ten_points["control_share"] == 0.2
    assert ten_points["true_gain"] <= 0.105
    assert ten_points["gain_shown_at_some_look"] >= 0.8
