"""What a model folder holds, and why one is refused before anything of it is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadwise.errors import ConfigurationError

OPENVINO_FORM = ("openvino_model.xml", "openvino_model.bin")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Of a safetensors file; the format allows no longer one.
HEADER_LIMIT_BYTES = 100_000_000
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
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
    if not has_openvino_form:
        _refuse_damage(folder)
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


def _refuse_damage(folder: Path) -> None:
    """A download that broke off is noticed before an export of minutes, or a load, fails of it."""
    paths = sorted(folder.glob("*.safetensors"))
    lacking = _lacking([path.name for path in paths])
    if lacking is not None:
        raise ConfigurationError(f"{folder} lacks {lacking}: its weights are not whole.", field="path")
    for path in paths:
        if not _whole(path):
            raise ConfigurationError(
                f"{path} is damaged or not whole ({path.stat().st_size} bytes): download or save it again.",
                field="path",
            )


def _lacking(names: Sequence[str]) -> str | None:
    """The first part that is not there of weights in several files."""
    for name in names:
        if part := _PART.fullmatch(name):
            stem, count = part[1], int(part[2])
            wanted = (f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1))
            return next((other for other in wanted if other not in names), None)
    return None


def _whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says: its length (8 bytes), itself, the tensors."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, HEADER_LIMIT_BYTES)))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return path.stat().st_size == 8 + length + max(ends, default=0)
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return False


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
