"""Which engine serves a folder, and what is said about it."""

import json

import pytest

from loadwise.decision.facts import Endpoint
from loadwise.engines import catalogue as module
from loadwise.engines.catalogue import Catalogue
from loadwise.errors import ConfigurationError, EngineError
from loadwise.settings import ModelSettings, Settings, UpstreamSettings
from loadwise.testing import FakeClock, FakeTokenEngine
from loadwise.testing.engine_contract import ask, text_of
from loadwise.testing.folders import NO_TENSORS, write_tokenizer

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 64}


@pytest.fixture
def folder(tmp_path):
    path = write_tokenizer(tmp_path / "model")
    (path / "config.json").write_text(json.dumps(LLAMA))
    (path / "model.safetensors").write_bytes(NO_TENSORS)
    return path


@pytest.fixture
def catalogue(tmp_path):
    return Catalogue(Settings(cache_dir=tmp_path / "cache"), FakeClock(), say=lambda _: None)


@pytest.fixture
def torch_engine(monkeypatch):
    """What stands where torch would."""
    pytest.importorskip("torch")
    made = []

    class Fake(FakeTokenEngine):
        def __init__(self, folder, **options):
            super().__init__()
            made.append((folder, options))

    monkeypatch.setattr("loadwise.engines.torch.TorchTokenEngine", Fake)
    return made


@pytest.fixture
def no_export(monkeypatch):
    async def fails(self, folder, weights="fp16"):
        raise EngineError("installing the exporter failed (1): no network")

    monkeypatch.setattr("loadwise.engines.exporter.Exporter.export", fails)


async def test_torch_is_taken_when_it_is_asked_for(catalogue, folder, torch_engine):
    opened = await catalogue.open_model("tiny", ModelSettings(path=folder, engine="torch"))
    assert (opened.kind, opened.reason) == ("torch", "torch was asked for")
    assert torch_engine[0][0] == folder
    assert text_of((await ask(opened.engine, Endpoint.CHAT))["choices"][0])
    assert (await opened.engine.observe()).replica_id == "tiny-0"
    await opened.engine.close()


@pytest.mark.usefixtures("no_export")
async def test_without_an_export_torch_serves_and_the_reason_is_said(catalogue, folder, torch_engine):
    opened = await catalogue.open_model("tiny", ModelSettings(path=folder))
    assert opened.kind == "torch"
    assert "no network" in opened.reason or "not installed" in opened.reason
    await opened.engine.close()
    assert len(torch_engine) == 1


@pytest.mark.usefixtures("no_export")
async def test_openvino_that_was_asked_for_is_not_replaced(catalogue, folder):
    with pytest.raises(ConfigurationError, match="cannot be served by OpenVINO"):
        await catalogue.open_model("tiny", ModelSettings(path=folder, engine="openvino"))


async def test_without_openvino_installed_torch_serves(catalogue, folder, torch_engine, monkeypatch):
    original = module.find_spec
    monkeypatch.setattr(
        module, "find_spec", lambda name: None if name == "openvino_genai" else original(name)
    )
    opened = await catalogue.open_model("tiny", ModelSettings(path=folder))
    assert "not installed" in opened.reason
    await opened.engine.close()
    assert len(torch_engine) == 1


async def test_the_form_that_is_named_is_served(catalogue, folder, torch_engine):
    opened = await catalogue.open_model("small", ModelSettings(path=folder, form="torchao/int8"))
    assert (opened.kind, opened.reason) == ("torch", "torchao/int8, as the settings say")
    assert torch_engine[0][1]["weights"] == "int8"
    await opened.engine.close()


@pytest.mark.usefixtures("no_export")
async def test_form_that_cannot_be_served_is_refused_and_not_replaced(catalogue, folder, torch_engine):
    with pytest.raises(ConfigurationError, match="cannot be served as openvino/int8"):
        await catalogue.open_model("small", ModelSettings(path=folder, form="openvino/int8"))
    assert torch_engine == []


async def test_a_model_on_a_gpu_is_served_by_torch(catalogue, folder, torch_engine):
    opened = await catalogue.open_model("big", ModelSettings(path=folder, device="cuda:1"))
    assert (opened.kind, opened.reason) == ("torch", "torch serves on cuda:1")
    assert torch_engine[0][1]["device"] == "cuda:1"
    await opened.engine.close()


@pytest.mark.parametrize("asked", [{"engine": "openvino"}, {"form": "openvino/fp16"}])
def test_openvino_and_a_gpu_exclude_each_other(folder, asked):
    with pytest.raises(ConfigurationError, match="needs engine: torch"):
        ModelSettings(path=folder, device="cuda", **asked)


def test_a_form_leaves_no_choice_of_engine(folder):
    with pytest.raises(ConfigurationError, match="leave engine out"):
        ModelSettings(path=folder, form="torchao/int8", engine="openvino")


async def test_a_folder_that_torch_cannot_load_is_refused_in_one_line(catalogue, folder):
    pytest.importorskip("torch")
    (folder / "config.json").write_text(json.dumps(LLAMA | {"model_type": "nobody-s"}))
    with pytest.raises(ConfigurationError) as raised:
        await catalogue.open_model("tiny", ModelSettings(path=folder, engine="torch"))
    assert "\n" not in str(raised.value)


async def test_torch_needs_weights(catalogue, folder):
    (folder / "model.safetensors").unlink()
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (folder / name).write_bytes(NO_TENSORS)
    with pytest.raises(ConfigurationError, match="no weights"):
        await catalogue.open_model("tiny", ModelSettings(path=folder, engine="torch"))


async def test_the_form_in_the_folder_is_served_by_openvino(catalogue, openvino_folder):
    opened = await catalogue.open_model("fast", ModelSettings(path=openvino_folder, engine="openvino"))
    assert (opened.kind, opened.reason) == ("openvino", "OpenVINO form in the folder")
    assert (await ask(opened.engine))["choices"][0]["text"]
    await opened.engine.close()


async def test_torch_beside_openvino_tells_the_most_likely_tokens(catalogue, openvino_folder):
    pytest.importorskip("torch")
    opened = await catalogue.open_model("fast", ModelSettings(path=openvino_folder))
    assert opened.reason == "OpenVINO form in the folder; torch beside it for top_logprobs"
    asked = {"logprobs": True, "max_tokens": 4}
    plain = (await ask(opened.engine, Endpoint.CHAT, **asked))["choices"][0]
    most = (await ask(opened.engine, Endpoint.CHAT, **asked, top_logprobs=2))["choices"][0]
    assert text_of(plain) == text_of(most)
    for one, other in zip(plain["logprobs"]["content"], most["logprobs"]["content"], strict=True):
        assert one["token"] == other["token"] == other["top_logprobs"][0]["token"]
    await opened.engine.close()


async def test_beside_a_form_that_is_named_nothing_is_opened(catalogue, openvino_folder, monkeypatch):
    async def served(*_):
        return FakeTokenEngine(), "in the folder"

    monkeypatch.setattr(Catalogue, "_openvino", served)
    opened = await catalogue.open_model("fast", ModelSettings(path=openvino_folder, form="openvino/int8"))
    assert opened.reason == "openvino/int8, as the settings say"


async def test_members_of_one_vocabulary_share_its_tokenizer(catalogue, folder, tmp_path, torch_engine):
    other = write_tokenizer(tmp_path / "other")
    (other / "config.json").write_text((folder / "config.json").read_text())
    (other / "model.safetensors").write_bytes(NO_TENSORS)
    (other / "chat_template.jinja").write_text("other")
    opened = [
        await catalogue.open_model(p.name, ModelSettings(path=p, engine="torch")) for p in (folder, other)
    ]
    first, second = (one.engine.tokenizer for one in opened)
    assert first.inner is second.inner
    assert (first.folder, second.folder) == (folder, other)
    for one in opened:
        await one.engine.close()
    assert len(torch_engine) == 2


def test_every_replica_of_an_upstream_is_an_engine(catalogue):
    upstream = UpstreamSettings(url="http://one:8000/v1", replicas=("http://two:8000",), model="m")
    engines = catalogue.open_upstream("far", upstream, api_key="k")
    assert [engine.replica_id for engine in engines] == ["far-0", "far-1"]
    assert [engine.base for engine in engines] == ["http://one:8000", "http://two:8000"]
