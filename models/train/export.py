"""Writes a trained member in its shipped form, and measures it with transformers' own model.

    python -m train.export --size fast --run build/fast --out src/loadwise_models/fast

needs the training environment. The OpenVINO form has an environment of its own, because
optimum-intel needs an older transformers (requirements-openvino.txt):

    python -m train.export --openvino src/loadwise_models/fast

Only the standard library is imported here; each half imports what its environment has.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FAMILY = "loadwise"
# The exporter's own tokenizer and chat files are not shipped: the engine tokenises itself.
OPENVINO_FILES = ("openvino_model.xml", "openvino_model.bin", "openvino_config.json")


def export(size: str, run: Path, tokens_folder: Path, out: Path) -> None:
    """Leaves config, weights in half precision, tokenizer and loadwise.json in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokens_folder / name, out / name)
    weights = trained_weights(run)
    kind = _closest_half(weights)
    _write_model(size, weights, kind, out)
    _write_facts(size, run, tokens_folder, out, kind)


def trained_weights(run: Path) -> dict[str, Tensor]:
    """A run's best weights, or those of its last checkpoint while there are no best ones."""
    from safetensors.torch import load_file

    if (run / "best.safetensors").exists():
        return load_file(run / "best.safetensors")
    saved = load_file(run / "last.safetensors")
    # The last checkpoint also holds the optimizers, and its weights carry one more prefix.
    return {key.removeprefix("model."): value for key, value in saved.items() if key.startswith("model.")}


def _closest_half(weights: dict[str, Tensor]) -> str:
    """`float16` or `bfloat16`, whichever changes the weights less in root mean square."""
    import torch

    def error(kind: torch.dtype) -> float:
        return sum(float((w - w.to(kind).float()).square().sum()) for w in weights.values())

    return "float16" if error(torch.float16) <= error(torch.bfloat16) else "bfloat16"


def _write_model(size: str, weights: dict[str, Tensor], kind: str, out: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from transformers import GenerationConfig, LlamaConfig

    from train import network, tokenizer

    shape = network.SIZES[size]
    marks = {"bos_token_id": tokenizer.BOS, "eos_token_id": tokenizer.EOS, "pad_token_id": tokenizer.PAD}
    entries = Tokenizer.from_file(str(out / "tokenizer.json"))
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=network.VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=network.CONTEXT,
        rms_norm_eps=network.NORM_EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": network.ROTARY_BASE},
        tie_word_embeddings=True,
        dtype=kind,
    )
    generation = GenerationConfig()
    for name, mark in marks.items():
        setattr(config, name, entries.token_to_id(mark))
        setattr(generation, name, entries.token_to_id(mark))
    config.save_pretrained(out)
    generation.save_pretrained(out)
    halves = {key: value.to(getattr(torch, kind)).contiguous() for key, value in weights.items()}
    save_file(halves, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)


def _write_facts(size: str, run: Path, tokens_folder: Path, out: Path, kind: str) -> None:
    from train import network

    progress = json.loads((run / "progress.json").read_text())
    loss, count = held_out_loss(out, tokens_folder)
    facts = {
        "name": size,
        "family": FAMILY,
        "parameters": network.parameters(network.SIZES[size]),
        "held_out_loss_nats_per_token": round(loss, 4),
        "held_out_tokens": count,
        "trained_tokens": progress["tokens"],
        "training_seconds": round(progress["seconds"]),
        "weights": kind,
        "plateau": progress["stale"] >= progress["plan"]["patience"],
    }
    (out / "loadwise.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts))


def held_out_loss(folder: Path, tokens_folder: Path) -> tuple[float, int]:
    """Mean nats per token in fp32 over the whole held-out stream at full context, and the token count."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from train.network import CONTEXT

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stream = np.fromfile(tokens_folder / "held_out.bin", dtype="<u2").astype(np.int64)
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(stream) - 1, CONTEXT):
            part = torch.from_numpy(stream[start : start + CONTEXT + 1])
            logits = model(part[None, :-1]).logits[0]  # T, V
            total += float(torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum"))
            count += len(part) - 1
    return total / count, count


def export_openvino(folder: Path) -> None:
    """Adds the OpenVINO form, weights compressed to fp16, to a member's folder."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
        options = [
            "--task",
            "text-generation-with-past",
            "--weight-format",
            "fp16",
            "--disable-convert-tokenizer",
        ]
        subprocess.run([*command, "--model", str(folder), *options, scratch], check=True)
        for name in OPENVINO_FILES:
            if (Path(scratch) / name).exists():
                shutil.copyfile(Path(scratch) / name, folder / name)


def main() -> None:
    """Exports one member, or adds the OpenVINO form to an exported one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--tokens-folder", type=Path, default=Path("build/tokens"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--openvino", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    if given.openvino:
        export_openvino(given.openvino)
    elif given.size and given.run and given.out:
        export(given.size, given.run, given.tokens_folder, given.out)
    else:
        parser.error("Give --openvino FOLDER, or --size, --run and --out.")


if __name__ == "__main__":
    main()
