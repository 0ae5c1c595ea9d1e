"""A tiny Llama, made here, in every form that the tests need."""

from pathlib import Path

import pytest

from loadwise.testing.folders import write_tokenizer

CONTEXT = 96
VOCABULARY = 61
EOS = 2


def make_llama(
    folder: Path, vocabulary: int = VOCABULARY, context: int = CONTEXT, eos: int = EOS, layers: int = 2
) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=eos,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    # Wide weights, so that the most likely token wins by more than rounding.
    for parameter in model.parameters():
        parameter.data.mul_(6.0 if parameter.dim() > 1 else 1.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def shallow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, so that compiling takes half as long."""
    pytest.importorskip("transformers")
    return make_llama(tmp_path_factory.mktemp("shallow"), layers=1)


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vocabulary is the byte-level tokenizer beside it."""
    pytest.importorskip("transformers")
    folder = make_llama(tmp_path_factory.mktemp("served"), vocabulary=258, context=1024, eos=1)
    return write_tokenizer(folder)
