"""Folders that cannot be served are refused in one line, before anything of them is loaded."""

import json

import pytest

from loadwise.engines.folders import inspect
from loadwise.errors import ConfigurationError
from loadwise.testing.folders import NO_TENSORS, write_tokenizer

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 64}

# A header (its length first), and as many bytes as it promises.
TENSOR = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
WHOLE = len(TENSOR).to_bytes(8, "little") + TENSOR + bytes(8)


@pytest.fixture
def folder(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model.safetensors").write_bytes(NO_TENSORS)
    return tmp_path


def refusal(folder):
    with pytest.raises(ConfigurationError) as raised:
        inspect(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_saved_model_may_be_served(folder):
    facts = inspect(folder)
    assert (facts.has_safetensors, facts.has_openvino_form, facts.context_tokens) == (True, False, 64)


def test_the_openvino_form_alone_is_enough(folder):
    (folder / "model.safetensors").unlink()
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (folder / name).write_bytes(b"")
    assert inspect(folder).has_openvino_form


def test_a_context_that_is_not_said_is_unknown(folder):
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert inspect(folder).context_tokens is None


def test_what_is_no_folder_is_refused(folder):
    assert "is no folder" in refusal(folder / "nowhere")
    assert "is no folder" in refusal(folder / "config.json")


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "no weights" in refusal(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in refusal(folder)


def test_whole_weights_may_be_served(folder):
    (folder / "model.safetensors").write_bytes(WHOLE)
    assert inspect(folder).has_safetensors


@pytest.mark.parametrize(
    "content",
    [
        b"",
        WHOLE[:-1],
        WHOLE[:20],
        WHOLE + b"x",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\xff" * 99,
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
)
def test_weights_that_are_not_whole_are_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert f"damaged or not whole ({len(content)} bytes)" in refusal(folder)


def test_weights_in_several_files_must_all_be_there(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert "lacks model-00002-of-00002.safetensors" in refusal(folder)
    (folder / "model-00002-of-00002.safetensors").write_bytes(WHOLE)
    assert inspect(folder).has_safetensors


def test_damaged_weights_that_nobody_reads_are_no_hindrance(folder):
    (folder / "model.safetensors").write_bytes(b"")
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (folder / name).write_bytes(b"")
    assert inspect(folder).has_openvino_form


def test_code_in_a_folder_is_refused(folder):
    (folder / "modeling_mine.py").write_text("")
    assert "modeling_mine.py" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_folder_that_names_code_is_refused(folder, name):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "x.Y"}}))
    assert "code of its own (auto_map)" in refusal(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["T5ForConditionalGeneration"]},
        {"architectures": ["MambaForCausalLM"], "model_type": "mamba"},
        {"architectures": ["BartForCausalLM"], "is_encoder_decoder": True},
        {"model_type": "bert"},
        {"architectures": [7]},
    ],
)
def test_other_architectures_are_refused_by_name(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    name = (config.get("architectures") or [config.get("model_type")])[0]
    assert f"{name} is not supported" in refusal(folder)


def test_a_folder_without_a_tokenizer_or_configuration_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "cannot be read" in refusal(folder)
    (folder / "config.json").write_text("[]")
    assert "JSON object" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json" in refusal(folder)
