"""A model whose weights are kept in fewer bits: smaller, and a model of a quality of its own."""

from __future__ import annotations

from typing import Any

from loadwise.errors import ConfigurationError, MissingExtraError
from loadwise.torch_engine.quiet import quiet

KINDS = ("int8",)


def keep_small(model: Any, kind: str) -> None:
    """Every linear layer of `model` has weights of `kind`, as plain tensors that builds can take.

    `ConfigurationError` for an unknown kind, `MissingExtraError` without torchao.
    """
    if kind not in KINDS:
        raise ConfigurationError(f"Unknown weights {kind!r}. Choose {', '.join(KINDS)}.", field="form")
    try:
        with quiet():
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
            from torchao.utils import unwrap_tensor_subclass
    except ImportError as error:
        raise MissingExtraError(
            f"Weights in {kind} need torchao: pip install 'loadwise[quantise]'.", name=error.name
        ) from error
    # What inductor compiles by is a build's business, not the process's.
    quantize_(model, Int8WeightOnlyConfig(set_inductor_config=False))
    unwrap_tensor_subclass(model)
