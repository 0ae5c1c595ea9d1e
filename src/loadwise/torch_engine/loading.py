"""Reads a model folder: safetensors only, no code from the folder, and only models whose cache is understood.

What a configuration claims is checked by doing: the model must answer through the engine's cache exactly as
it answers on its own, or it is refused by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loadwise.errors import ConfigurationError
from loadwise.torch_engine.cache import CacheShape, KeyValueCache
from loadwise.torch_engine.quiet import quiet
from loadwise.torch_engine.weights import keep_small

with quiet():
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.cache_utils import DynamicCache, DynamicLayer
    from transformers.utils.logging import disable_progress_bar

    from loadwise.torch_engine.step import Step, attention_mask

_PROBE_TOKENS = 8
# float32 sums in another order differ by this much of the logits' size; half precisions by more.
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-6}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode with what the engine must know of it."""

    name: str
    model: torch.nn.Module
    shape: CacheShape
    context_tokens: int
    vocabulary: int
    eos_token_ids: tuple[int, ...]
    device: torch.device


def load(
    folder: Path, *, device: str = "cpu", dtype: str | None = None, weights: str | None = None
) -> LoadedModel:
    """The model in `folder`; `ConfigurationError` names what is missing or not supported.

    `dtype` is a torch name ("float32", "bfloat16"); None means float32 on the CPU, else the folder's own.
    `weights` keeps those of linear layers small ("int8"): a variant of the model.
    """
    refuse_unsafe(folder)
    place = _device(device)
    # Bars of transformers would cut through a server's log.
    disable_progress_bar()
    kind = dtype or ("float32" if place.type == "cpu" else "auto")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with quiet():
            model, told = AutoModelForCausalLM.from_pretrained(
                folder,
                output_loading_info=True,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=kind,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ConfigurationError(f"Cannot load {folder}: {_one_line(error)}", field="models") from error
    if told["missing_keys"]:
        # They would be random numbers, and answers noise.
        first = min(told["missing_keys"])
        raise ConfigurationError(
            f"{folder} lacks {len(told['missing_keys'])} of its weights, {first} among them.", field="models"
        )
    if weights is not None:
        keep_small(model, weights)
    return adopt(model.to(place), folder.name)


def adopt(model: Any, name: str) -> LoadedModel:
    """A transformers model as the engine uses it, in evaluation mode, checked against its own answers."""
    model.eval()
    with torch.no_grad():
        shape = _cache_shape(model, name)
        loaded = LoadedModel(
            name=name,
            model=model,
            shape=shape,
            context_tokens=_context(model, name),
            vocabulary=int(model.config.get_text_config(decoder=True).vocab_size),
            eos_token_ids=_eos(model),
            device=model.device,
        )
        _check(loaded)
    return loaded


def refuse_unsafe(folder: Path) -> None:
    """`ConfigurationError` unless `folder` holds a configuration and safetensors weights, and no code."""
    config = folder / "config.json"
    if not config.is_file():
        raise ConfigurationError(
            f"{folder} has no config.json: name a folder saved by transformers.", field="models"
        )
    if not any(folder.glob("*.safetensors")):
        raise ConfigurationError(
            f"{folder} has no *.safetensors weights; other formats can run code when they are read. "
            "Save the model with safe_serialization=True.",
            field="models",
        )
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"Cannot read {config}: {_one_line(error)}", field="models") from error
    if isinstance(values, dict) and "auto_map" in values:
        raise ConfigurationError(
            f"{folder} wants to run code of its own (auto_map in config.json), which loadwise never does. "
            "Use a model whose architecture transformers knows.",
            field="models",
        )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigurationError(
            f"Unknown device {name!r}; use cpu, cuda or cuda:0.", field="device"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"Device {name!r} is not there: torch sees no CUDA device.", field="device")
    return device


def _context(model: Any, name: str) -> int:
    config = model.config.get_text_config(decoder=True)
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int) or length < 2:
        raise _refused(name, model, "it does not say its context length (max_position_embeddings)")
    return length


def _eos(model: Any) -> tuple[int, ...]:
    given = getattr(model.generation_config, "eos_token_id", None)
    if given is None:
        return ()
    return (given,) if isinstance(given, int) else tuple(given)


def _cache_shape(model: Any, name: str) -> CacheShape:
    """Read off the cache that the model itself fills."""
    cache = DynamicCache(config=model.config)
    try:
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), past_key_values=cache)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _refused(name, model, f"it cannot run with a key/value cache ({_one_line(error)})") from error
    odd = {type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer}
    if odd or not cache.layers:
        raise _refused(
            name, model, f"its cache is not the standard one ({', '.join(sorted(odd)) or 'unused'})"
        )
    found = {
        (layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3], layer.keys.dtype)
        for layer in cache.layers
    }
    if len(found) != 1:
        raise _refused(name, model, "its layers have caches of different shapes")
    heads, key_size, value_size, dtype = found.pop()
    return CacheShape(len(cache.layers), heads, key_size, value_size, dtype)


def _check(loaded: LoadedModel) -> None:
    """Reading a prompt in pieces through our cache gives the model's own logits."""
    tokens = torch.arange(_PROBE_TOKENS, device=loaded.device).remainder(loaded.vocabulary).unsqueeze(0)
    own = loaded.model(input_ids=tokens).logits[0, -1].float()
    cache = KeyValueCache(loaded.shape, 1, _PROBE_TOKENS, loaded.device)
    step, ours = Step(loaded.model), own
    try:
        for part in torch.arange(_PROBE_TOKENS, device=loaded.device).split([5, 1, 1, 1]):
            positions = part.unsqueeze(0)  # [1, T]
            mask = attention_mask(positions + 1, cache.columns, loaded.shape.dtype)
            logits = step(tokens[:, part], positions, mask, *cache.row(0), positions + 1)  # [1, V]
            ours = logits[0].float()
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        raise _refused(
            loaded.name, loaded.model, f"it does not take our cache ({_one_line(error)})"
        ) from error
    scale = own.abs().max().item() + 1.0
    difference = (own - ours).abs().max().item() / scale
    if not difference <= _TOLERANCES.get(loaded.shape.dtype, 0.1):
        raise _refused(loaded.name, loaded.model, f"its answers through our cache differ by {difference:.2g}")


def _refused(name: str, model: Any, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} ({type(model).__name__}) is not supported by the torch engine: {why}. "
        "Use a decoder-only model with full attention, or serve it behind --upstream.",
        field="models",
    )


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
