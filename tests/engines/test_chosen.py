"""What was found fastest is served so, as long as the folder is what it was."""

from pathlib import Path

import pytest

from loadwise.engines.chosen import Choice, recall, remember


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
