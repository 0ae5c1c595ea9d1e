"""What a model folder holds, and why one is refused before anything of it is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadwise.errors import ConfigurationError

OPENVINO_FORM = ("openvino_model.xml", "openvino_model.bin")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Without the standard key/value cache, whatever their class is called.
OTHER_CACHES = frozenset(
    {
        "bamba",
        "falcon_h1",
        "falcon_mamba",
        "granitemoehybrid",
        "jamba",
        "lfm2",
        "mamba",
        "mamba2",
        "minimax",
        "nemotron_h",
        "qwen3_next",
        "recurrent_gemma",
        "rwkv",
        "xlstm",
        "zamba",
        "zamba2",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A folder that may be served."""

    path: Path
    config: dict[str, Any]
    has_openvino_form: bool
    has_safetensors: bool

    @property
    def context_tokens(self) -> int | None:
        """The longest sequence that it was made for."""
        length = self.config.get("max_position_embeddings")
        return length if isinstance(length, int) else None


def inspect(folder: Path) -> ModelFolder:
    """The folder's facts; `ConfigurationError` says in one line why it cannot be served."""
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder: name the folder of a saved model.", field="path")
    config = _json(folder / "config.json")
    _refuse_code(folder, config)
    _refuse_architecture(folder, config)
    has_openvino_form = all((folder / name).is_file() for name in OPENVINO_FORM)
    has_safetensors = any(folder.glob("*.safetensors"))
    if not has_openvino_form and not has_safetensors:
        _refuse_weights(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ConfigurationError(
            f"{folder} has no tokenizer.json: save the model with its fast tokenizer.", field="path"
        )
    return ModelFolder(
        path=folder,
        config=config,
        has_openvino_form=has_openvino_form,
        has_safetensors=has_safetensors,
    )


def _refuse_code(folder: Path, config: dict[str, Any]) -> None:
    """Nothing of a folder is ever executed, so a model that needs that is refused."""
    tokenizer_config = folder / "tokenizer_config.json"
    named = "auto_map" in config or (tokenizer_config.is_file() and "auto_map" in _json(tokenizer_config))
    script = next(iter(sorted(folder.glob("*.py"))), None)
    if named or script is not None:
        where = script.name if script is not None else "auto_map"
        raise ConfigurationError(
            f"{folder} brings code of its own ({where}), which loadwise never runs: use a model that "
            "transformers knows.",
            field="path",
        )


def _refuse_architecture(folder: Path, config: dict[str, Any]) -> None:
    kind = config.get("model_type")
    names = config.get("architectures") or [str(kind)]
    plain = isinstance(names[0], str) and names[0].endswith("ForCausalLM")
    if plain and kind not in OTHER_CACHES and not config.get("is_encoder_decoder"):
        return
    raise ConfigurationError(
        f"{folder}: {names[0]} is not supported; loadwise serves decoder-only models with a standard "
        "key/value cache. Serve it elsewhere and name it with --upstream.",
        field="path",
    )


def _refuse_weights(folder: Path) -> None:
    pickled = next((path for pattern in PICKLED for path in sorted(folder.glob(pattern))), None)
    if pickled is None:
        raise ConfigurationError(f"{folder} has no weights (*.safetensors).", field="path")
    raise ConfigurationError(
        f"{folder} has its weights as {pickled.name} only, a format that can run code: "
        "save them as safetensors.",
        field="path",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path.parent} has no {path.name}: name the folder of a saved model.", field="path"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}", field="path") from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path} must hold a JSON object.", field="path")
    return value
