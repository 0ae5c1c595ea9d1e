"""Texts that builds of a model are held against: an operator's, or those that lie beside the model."""

from __future__ import annotations

import json
from pathlib import Path

from loadwise.engines.tokenizer import Tokenizer
from loadwise.errors import ConfigurationError
from loadwise.torch_engine.texts import Texts

# Beside a model's weights: text of its kind that it was not trained on.
HELD_OUT_FILE = "held_out.txt"
FIELD = "build_prompts"


def held_out(folder: Path, prompts: Path | None) -> Texts | None:
    """The texts for the model in `folder`, or None: then the model writes its own.

    `ConfigurationError` says why those of the operator cannot be used.
    """
    shipped = folder / HELD_OUT_FILE
    if prompts is not None:
        texts, source = read_prompts(prompts), "operator"
    elif shipped.is_file():
        texts, source = [_read(shipped)], "model folder"
    else:
        return None
    tokenizer = Tokenizer.load(folder)
    encoded = [tokenizer.encode(text, add_special=True) for text in texts]
    return Texts(tuple(token for tokens in encoded for token in tokens), source)


def read_prompts(path: Path) -> list[str]:
    """One prompt per line; in a .jsonl file each line is a string, or an object with a `prompt` or `text`."""
    lines = [line for line in _read(path).splitlines() if line.strip()]
    if path.suffix == ".jsonl":
        lines = [_of_json(path, number, line) for number, line in enumerate(lines, 1)]
    if not lines:
        raise ConfigurationError(f"{path} has no prompts: one per line is needed.", field=FIELD)
    return lines


def _of_json(path: Path, number: int, line: str) -> str:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if isinstance(found, dict):
        found = found.get("prompt", found.get("text"))
    if not isinstance(found, str):
        raise ConfigurationError(
            f"{path}: prompt {number} is no JSON string and no object with a text under 'prompt' or 'text'.",
            field=FIELD,
        )
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"Cannot read prompts from {path}: {reason}.", field=FIELD) from None
