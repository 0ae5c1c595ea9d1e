"""What was found fastest is served so, as long as the folder is what it was."""

from pathlib import Path
from typing import get_args

import pytest

from loadwise.engines.chosen import (
    Choice,
    quantised,
    recall,
    recall_quality,
    remember,
    remember_qualities,
)
from loadwise.settings.server import FormName


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "model"


def test_choice_is_found_again_for_the_same_folder(tmp_path: Path, folder: Path) -> None:
    assert recall(tmp_path, folder) is None
    remember(tmp_path, folder, Choice("openvino", "bf16"))
    assert recall(tmp_path, folder) == Choice("openvino", "bf16")


def test_choice_for_other_weights_does_not_count(tmp_path: Path, folder: Path) -> None:
    remember(tmp_path, folder, Choice("torch", "eager"))
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert recall(tmp_path, folder) is None


@pytest.mark.parametrize(
    "text", ["", "[]", '{"engine": "openvino"}', '{"engine": "shell", "mode": "rm"}',
             '{"engine": "openvino", "mode": "fp8"}'],
)  # fmt: skip
def test_choice_that_makes_no_sense_is_none(tmp_path: Path, folder: Path, text: str) -> None:
    remember(tmp_path, folder, Choice("torch", "eager"))
    (found,) = (tmp_path / "chosen").iterdir()
    found.write_text(text)
    assert recall(tmp_path, folder) is None


def test_qualities_of_variants_are_kept_beside_each_other_for_the_folder_as_it_is(
    tmp_path: Path, folder: Path
) -> None:
    assert recall_quality(tmp_path, folder, "openvino/int8") is None
    remember_qualities(tmp_path, folder, {"openvino/int8": 0.98})
    remember_qualities(tmp_path, folder, {"torchao/int8": 1.0})
    assert recall_quality(tmp_path, folder, "openvino/int8") == 0.98
    assert recall_quality(tmp_path, folder, "torchao/int8") == 1.0
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert recall_quality(tmp_path, folder, "openvino/int8") is None


@pytest.mark.parametrize("value", ['"high"', "NaN", "1.5", "-1", "null", "true "])
def test_quality_that_makes_no_sense_is_none(tmp_path: Path, folder: Path, value: str) -> None:
    remember_qualities(tmp_path, folder, {"openvino/int8": 0.98})
    (found,) = (tmp_path / "chosen").iterdir()
    found.write_text(f'{{"openvino/int8": {value}}}')
    assert recall_quality(tmp_path, folder, "openvino/int8") is None


def test_forms_with_small_weights_are_variants() -> None:
    assert [form for form in get_args(FormName) if quantised(form)] == [
        "openvino/int8",
        "openvino/int4",
        "torchao/int8",
    ]
