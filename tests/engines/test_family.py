"""Qualities come from held-out losses, and from nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from loadwise.engines.family import FamilyCard, qualities, read_card, relative_costs
from loadwise.errors import ConfigurationError


def card(loss: float, family: str = "demo", parameters: int = 10) -> FamilyCard:
    return FamilyCard(family=family, held_out_loss=loss, parameters=parameters)


def test_the_best_of_a_family_has_quality_1_and_the_others_follow_their_loss() -> None:
    found = qualities({"small": card(3.0), "large": card(2.5)})
    assert found["large"] == 1.0
    assert found["small"] == pytest.approx(math.exp(-0.5))


def test_families_are_not_compared_with_one_another() -> None:
    assert qualities({"a": card(9.0, "one"), "b": card(1.0, "two")}) == {"a": 1.0, "b": 1.0}


def test_costs_are_relative_to_the_smallest() -> None:
    assert relative_costs({"a": card(1, parameters=2), "b": card(1, parameters=8)}) == {"a": 1.0, "b": 4.0}
    assert relative_costs({}) == {}


def test_a_folder_without_a_card_has_no_measured_quality(tmp_path: Path) -> None:
    assert read_card(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"family": "f", "held_out_loss_nats_per_token": "x", "parameters": 1}',
        '{"family": "f", "held_out_loss_nats_per_token": 1e999, "parameters": 1}',
        '{"family": "f", "held_out_loss_nats_per_token": 1, "parameters": 0}',
    ],
)
def test_a_card_that_says_nothing_usable_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "loadwise.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"loadwise\.json"):
        read_card(tmp_path)


def test_a_card_is_read(tmp_path: Path) -> None:
    values = {"family": "f", "held_out_loss_nats_per_token": 2.5, "parameters": 7, "more": None}
    (tmp_path / "loadwise.json").write_text(json.dumps(values), encoding="utf-8")
    assert read_card(tmp_path) == card(2.5, "f", 7)
