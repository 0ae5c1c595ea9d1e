"""What a model folder's configuration files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loadwise.errors import ConfigurationError


def read_configs(folder: Path) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The folder's `config.json` and its end-of-sequence ids (`generation_config.json` first)."""
    config = _json(folder / "config.json")
    generation = (
        _json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    )
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    return config, tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}", field="path") from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path} must hold a JSON object.", field="path")
    return value
