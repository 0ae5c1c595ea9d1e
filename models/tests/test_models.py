"""The shipped family: complete, consistent, and better with size."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer

from loadwise_models import family, quality

NAMES = ["fast", "balanced", "accurate"]
FILES = [
    "config.json",
    "generation_config.json",
    "loadwise.json",
    "model.safetensors",
    "openvino_model.bin",
    "openvino_model.xml",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest) -> Path:
    """One member's folder."""
    return family()[request.param]


def rendered(folder: Path, messages: list[dict[str, str]], *, prompt: bool) -> str:
    """A conversation as the chat template writes it."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(settings["chat_template"])
    return template.render(
        messages=messages,
        add_generation_prompt=prompt,
        bos_token=settings["bos_token"],
        eos_token=settings["eos_token"],
    )


def test_the_family_has_three_members_from_small_to_large():
    assert list(family()) == NAMES
    sizes = [quality()[name].parameters for name in NAMES]
    assert sizes == sorted(sizes)


def test_each_step_up_is_at_least_015_nats_better_on_the_same_held_out_tokens():
    members = [quality()[name] for name in NAMES]
    assert len({member.held_out_tokens for member in members}) == 1
    losses = [member.held_out_loss_nats_per_token for member in members]
    assert losses[0] - losses[1] >= 0.15
    assert losses[1] - losses[2] >= 0.15


def test_a_member_is_complete(folder: Path):
    assert [name for name in FILES if not (folder / name).is_file()] == []


def test_the_whole_family_stays_below_80_megabytes():
    assert sum(file.stat().st_size for f in family().values() for file in f.iterdir()) < 80e6


def test_all_members_share_one_tokenizer():
    assert len({(folder / "tokenizer.json").read_bytes() for folder in family().values()}) == 1


def test_the_configuration_names_the_special_tokens_that_the_tokenizer_has(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    marks = {"bos_token_id": "<|bos|>", "eos_token_id": "<|endoftext|>", "pad_token_id": "<|pad|>"}
    assert {key: config[key] for key in marks} == {k: tokenizer.token_to_id(m) for k, m in marks.items()}
    assert tokenizer.get_vocab_size() == config["vocab_size"] == 4096
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 1024


def test_text_survives_the_tokenizer(folder: Path):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "def grüße(x):\n\treturn '\U0001f40d' * 12345  # \x00 ok\r\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_chat_becomes_comments_above_the_code_to_come(folder: Path):
    messages = [
        {"role": "system", "content": "Tools for lists."},
        {"role": "user", "content": "Reverse a list.\nIn place."},
    ]
    text = rendered(folder, messages, prompt=True)
    assert text == '<|bos|>"""Tools for lists."""\n\n# Reverse a list.\n# In place.\n'


def test_a_chat_of_several_turns_keeps_the_code_between_its_comments(folder: Path):
    messages = [
        {"role": "user", "content": "One."},
        {"role": "assistant", "content": "x = 1"},
        {"role": "user", "content": "Two."},
    ]
    assert rendered(folder, messages, prompt=True) == "<|bos|># One.\nx = 1\n\n\n# Two.\n"


def test_a_finished_chat_ends_the_text(folder: Path):
    messages = [{"role": "user", "content": "One."}, {"role": "assistant", "content": "x = 1"}]
    assert rendered(folder, messages, prompt=False) == "<|bos|># One.\nx = 1\n\n\n<|endoftext|>"


def test_weights_load_into_transformers_and_predict_as_the_card_says(folder: Path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = (
        Tokenizer.from_file(str(folder / "tokenizer.json"))
        .encode("import os\nimport sys\n\n\ndef main():\n    ")
        .ids
    )
    with torch.inference_mode():
        loss = float(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss)
    assert loss < 4.0
