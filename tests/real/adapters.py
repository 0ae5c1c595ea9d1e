"""Adapters of the demo models, written by tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_adapter(folder: Path, model: Path, rank: int = 4) -> Path:
    """A LoRA adapter of the model's attention with small random weights."""
    config = json.loads((model / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, out in (("q_proj", heads * head), ("v_proj", config["num_key_value_heads"] * head)):
            where = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{where}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator) * 0.02
            weights[f"{where}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.02
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none"}
    said["target_modules"] = ["q_proj", "v_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder
