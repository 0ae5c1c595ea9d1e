"""Settings of experiments and rollout: off in production until asked for, and refused with a clear reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadwise.errors import ConfigurationError
from loadwise.settings import OptimizationConfig, explain_setting, load_settings


def test_a_tenth_of_the_blocks_and_a_hundredth_of_the_conversations_are_the_default() -> None:
    experiment = OptimizationConfig().experiment
    assert (experiment.block_share, experiment.conversation_share, experiment.block_sec) == (0.1, 0.01, 600.0)
    assert experiment.schedule().burn_in_s == 120.0


def test_production_measures_nothing_until_it_is_asked_to(tmp_path: Path) -> None:
    experiment = load_settings(preset="production").optimization.experiment
    assert (experiment.block_share, experiment.conversation_share) == (0.0, 0.0)
    file = tmp_path / "loadwise.yaml"
    file.write_text("preset: production\noptimization: {experiment: {block_share: 0.2, block_sec: 60}}\n")
    experiment = load_settings(file).optimization.experiment
    assert (experiment.block_share, experiment.conversation_share, experiment.block_sec) == (0.2, 0.0, 60.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiment": {"block_share": 0.6}}, "experiment.block_share"),
        ({"experiment": {"block_share": 0.005}}, r"block_share must be 0 \(off\) or 0.01..0.5, not 0.005"),
        ({"experiment": {"block_sec": 0.5}}, "experiment.block_sec"),
        ({"experiment": {"burn_in_sec": 600.0}}, r"burn_in_sec \(600\) must be below block_sec \(600\)"),
        ({"experiment": {"conversation_share": float("nan")}}, "experiment.conversation_share"),
        ({"experiment": {"share": 0.1}}, "there is no such setting"),
        ({"rollout": {"mode": "slowly"}}, "rollout.mode"),
        ({"rollout": {"steps": [0.5, 0.1, 1.0]}}, "steps must ascend from above 0 to 1, not 0.5, 0.1, 1"),
        ({"rollout": {"steps": [0.5]}}, "steps must ascend"),
        ({"rollout": {"steps": []}}, "rollout.steps"),
        ({"rollout": {"keys": {"team-a": "half"}}}, "rollout.keys.team-a"),
        ({"rollout": {"step_requests": 0}}, "rollout.step_requests"),
    ],
)
def test_wrong_values_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        OptimizationConfig().changed(changes)


def test_settings_of_a_group_can_be_explained() -> None:
    assert explain_setting("experiment.block_share")["maximum"] == 0.5
    assert explain_setting("optimization.experiment.block_sec")["default"] == 600.0
    assert set(explain_setting("rollout")["properties"]) >= {"mode", "steps", "attempt"}
    with pytest.raises(ConfigurationError, match=r"Unknown setting 'experiment\.nothing'"):
        explain_setting("experiment.nothing")
