"""Which folders are served, and why others are not."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from loadwise.errors import ConfigurationError
from loadwise.torch_engine.loading import adopt, load

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def test_model_is_described_by_its_own_cache(llama_folder: Path) -> None:
    loaded = load(llama_folder)
    assert (loaded.context_tokens, loaded.vocabulary, loaded.eos_token_ids) == (96, 61, (2,))
    shape = loaded.shape
    assert (shape.layers, shape.heads, shape.key_size, shape.value_size) == (2, 2, 8, 8)
    assert shape.bytes_per_token == 2 * 2 * 16 * 4
    assert not loaded.model.training


def test_half_precision_is_served_when_asked_for(llama_folder: Path) -> None:
    assert load(llama_folder, dtype="bfloat16").shape.dtype is torch.bfloat16


def test_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no config\.json"):
        load(tmp_path)


def test_weights_that_could_run_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="safetensors"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "model.Evil"}}, "code of its own"),
        ({"model_type": "no-such-architecture"}, "Cannot load"),
    ],
)
def test_folder_with_code_or_of_unknown_architecture_is_refused(
    tmp_path: Path, config: dict[str, Any], why: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=why):
        load(tmp_path)


def test_weights_that_lack_a_layer_are_refused_and_never_made_up(llama_folder: Path, tmp_path: Path) -> None:
    config = json.loads((llama_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    (tmp_path / "model.safetensors").write_bytes((llama_folder / "model.safetensors").read_bytes())
    with pytest.raises(ConfigurationError, match=r"lacks 9 of its weights, model\.layers\.2"):
        load(tmp_path)


def test_broken_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="Cannot read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("device", "why"), [("warp", "Unknown device"), ("cuda:99", "CUDA|not there|Cannot")]
)
def test_device_that_is_not_there_is_refused(llama_folder: Path, device: str, why: str) -> None:
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ConfigurationError, match=why):
        load(llama_folder, device=device)


def test_other_families_with_the_standard_cache_are_served() -> None:
    torch.manual_seed(1)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 61}
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
    qwen = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8, intermediate_size=48)
    )
    assert adopt(gpt2, "gpt2").context_tokens == 64
    assert adopt(qwen, "qwen").shape.heads == 2


def test_model_with_another_cache_is_refused_by_name() -> None:
    sliding = transformers.MistralForCausalLM(
        transformers.MistralConfig(**SMALL, num_key_value_heads=2, intermediate_size=48, sliding_window=8)
    )
    with pytest.raises(ConfigurationError, match=r"tiny \(MistralForCausalLM\).*Sliding"):
        adopt(sliding, "tiny")
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2)
    )
    with pytest.raises(ConfigurationError, match=r"MambaForCausalLM"):
        adopt(mamba, "tiny")


def test_model_that_builds_positions_from_its_mask_is_refused() -> None:
    bloom = transformers.BloomForCausalLM(
        transformers.BloomConfig(
            vocab_size=61, hidden_size=32, n_layer=2, n_head=4, max_position_embeddings=64
        )
    )
    with pytest.raises(ConfigurationError, match="BloomForCausalLM"):
        adopt(bloom, "tiny")
