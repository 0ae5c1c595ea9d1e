"""Starts a deeper member from a trained one, so that little time makes the most of both.

    python -m train.grow --run build/balanced --size accurate --out build/accurate

Each layer is followed by copies of itself whose outputs are zero: the deeper model begins exactly as good as
the shallower, and goes on with the tokens that its parent has not seen.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from train.network import SIZES

LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)$")
# The two matrices through which a layer adds to what passes it.
OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def deeper(weights: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    """The weights of a model `times` as deep that computes the same."""
    grown: dict[str, Tensor] = {}
    for key, value in weights.items():
        found = LAYER.match(key)
        if not found:
            grown[key] = value
            continue
        number, name = int(found[1]), found[2]
        for copy in range(times):
            silent = copy > 0 and name in OUTPUTS
            new = torch.zeros_like(value) if silent else value.clone()
            grown[f"model.layers.{number * times + copy}.{name}"] = new
    return grown


def main() -> None:
    """Leaves a checkpoint that train.train resumes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the trained member's run")
    parser.add_argument("--size", choices=SIZES, required=True, help="the deeper member")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    weights = load_file(given.run / "best.safetensors")
    depth = len({found[1] for key in weights if (found := LAYER.match(key))})
    grown = deeper(weights, SIZES[given.size].layers // depth)
    given.out.mkdir(parents=True, exist_ok=True)
    save_file({f"model.{key}": value for key, value in grown.items()}, given.out / "last.safetensors")
    parent = json.loads((given.run / "progress.json").read_text())
    noted = {"plan": parent["plan"], "tokens": parent["tokens"], "seconds": parent["seconds"]}
    (given.out / "progress.json").write_text(json.dumps(noted) + "\n")


if __name__ == "__main__":
    main()
