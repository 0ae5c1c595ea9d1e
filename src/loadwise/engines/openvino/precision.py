"""In which numbers OpenVINO keeps and computes a causal model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Precision:
    """How weights are kept, what is computed in, and what the key/value cache holds."""

    weights: str
    computes_in: str
    kv_cache: str
    # As torch names the precision that the answers are to have.
    precision: str
    quantised: bool = False

    @property
    def properties(self) -> dict[str, str]:
        """For the device."""
        return {"INFERENCE_PRECISION_HINT": self.computes_in, "KV_CACHE_PRECISION": self.kv_cache}

    def lacking(self) -> str | None:
        """What this processor lacks to compute so, in words; None when it can."""
        if self.computes_in != "bf16" or self.quantised or find_spec("openvino") is None:
            return None
        return None if _computes_in_bfloat16() else "this processor does not compute in bfloat16"


@cache
def _computes_in_bfloat16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def native() -> str:
    """The form that nobody chose: bfloat16 where the processor computes in it, else fp16."""
    return "bf16" if _computes_in_bfloat16() else "fp16"


# A cache of eight bits would be a quantisation that nobody asked for, so every form says its own.
PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        "fp32": Precision("fp32", "f32", "f32", "float32"),
        "fp16": Precision("fp16", "f32", "f16", "float16"),
        "bf16": Precision("fp16", "bf16", "bf16", "bfloat16"),
        "int8": Precision("int8", "bf16", "u8", "bfloat16", quantised=True),
        "int4": Precision("int4", "bf16", "u8", "bfloat16", quantised=True),
    }
)
