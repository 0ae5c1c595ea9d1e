"""Builds are held against an operator's prompts, else those beside the model."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")
models = pytest.importorskip("loadwise_models")

from loadwise.engines.held_out import HELD_OUT_FILE, held_out, read_prompts
from loadwise.engines.tokenizer import Tokenizer
from loadwise.errors import ConfigurationError

PROMPTS = ["def first(items):", "import os"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder without texts of its own."""
    made = tmp_path / "model"
    made.mkdir()
    shutil.copy(models.family()["fast"] / "tokenizer.json", made)
    return made


def test_operators_prompts_win_and_are_read_as_the_model_reads_them(folder: Path, tmp_path: Path) -> None:
    (folder / HELD_OUT_FILE).write_text("beside the model")
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n".join(PROMPTS))
    found = held_out(folder, file)
    assert found is not None
    assert found.source == "operator"
    tokenizer = Tokenizer.load(folder)
    assert list(found.tokens) == [t for text in PROMPTS for t in tokenizer.encode(text, add_special=True)]


@pytest.mark.parametrize(
    "shape", [lambda text: text, lambda text: {"prompt": text}, lambda text: {"text": text}]
)
def test_json_lines_hold_prompts_of_several_lines(tmp_path: Path, shape) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(shape(text)) for text in ["two\nlines", "one"]))
    assert read_prompts(file) == ["two\nlines", "one"]


def test_text_beside_the_model_is_next_and_without_any_there_is_none(folder: Path) -> None:
    assert held_out(folder, None) is None
    (folder / HELD_OUT_FILE).write_text("def first(items):\n    return items[0]\n")
    found = held_out(folder, None)
    assert found is not None
    assert found.source == "model folder"


@pytest.mark.parametrize("name", ["fast", "balanced", "accurate"])
def test_shipped_models_have_text_they_were_not_trained_on(name: str) -> None:
    found = held_out(models.family()[name], None)
    assert found is not None
    assert found.source == "model folder"
    # Sixteen texts of 72 tokens are read.
    assert len(found.tokens) >= 16 * 72


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("none.txt", None, "No such file"),
        ("latin.txt", "déjà".encode("latin-1"), "not UTF-8"),
        ("empty.txt", b"\n\n", "one per line is needed"),
        ("odd.jsonl", b'"fine"\n{"question": "?"}', "prompt 2 is no JSON string"),
        ("broken.jsonl", b"{", "prompt 1 is no JSON string"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused_by_name(
    folder: Path, tmp_path: Path, name: str, content: bytes | None, why: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=why) as refused:
        held_out(folder, tmp_path / name)
    assert refused.value.field == "build_prompts"
