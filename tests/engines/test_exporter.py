"""The exporter runs elsewhere, once, and says what went wrong."""

import asyncio
import sys

import pytest

from loadwise.engines import exporter as module
from loadwise.engines.exporter import Exporter
from loadwise.errors import EngineError


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


class Commands:
    """Stands in for the commands of an export: keeps them, and leaves what they would leave."""

    def __init__(self, leaves=("openvino_model.xml", "openvino_model.bin", "config.json"), fails="", says=""):
        self.ran = []
        self.says = says
        self.leaves = leaves
        self.fails = fails

    async def __call__(self, command, limit_s, what):
        self.ran.append(what)
        if self.fails and self.fails in what:
            raise EngineError(f"{what} failed (1): no network")
        if "environment" in what:
            module.Path(command[-1]).mkdir()
        if what == "the export":
            out = module.Path(command[-1])
            out.mkdir()
            for name in self.leaves:
                (out / name).write_text("x")
        return self.says


@pytest.fixture
def commands(monkeypatch):
    def install(**options):
        made = Commands(**options)
        monkeypatch.setattr(module, "_run", made)
        return made

    return install


async def test_a_folder_is_exported_once_and_its_environment_made_once(tmp_path, folder, commands):
    ran, said = commands(), []
    exporter = Exporter(tmp_path / "cache", said.append)
    assert exporter.known(folder) is None
    # A real environment marks itself complete only after its packages are in.
    first, second = await asyncio.gather(exporter.export(folder), exporter.export(folder))
    assert first == second == exporter.known(folder)
    assert ran.ran.count("the export") == 1
    assert len(said) == 2
    assert sorted(path.name for path in first.parent.iterdir()) == [first.name]


async def test_new_weights_are_exported_again(tmp_path, folder, commands):
    commands()
    exporter = Exporter(tmp_path / "cache")
    first = await exporter.export(folder)
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert await exporter.export(folder) != first


@pytest.mark.parametrize("stage", ["environment", "installing", "export"])
async def test_a_failing_stage_is_named_and_leaves_nothing(tmp_path, folder, commands, stage):
    commands(fails=stage)
    exporter = Exporter(tmp_path / "cache")
    with pytest.raises(EngineError, match="no network"):
        await exporter.export(folder)
    assert exporter.known(folder) is None


async def test_an_export_that_leaves_no_model_has_failed(tmp_path, folder, commands):
    commands(leaves=("config.json",))
    with pytest.raises(EngineError, match=r"left no openvino_model\.xml"):
        await Exporter(tmp_path / "cache").export(folder)


async def test_weights_that_the_exporter_made_up_are_kept_by_nobody(tmp_path, folder, commands):
    commands(
        says="model.layers.2.mlp.down_proj.weight | MISSING\n those params were newly initialized because"
    )
    exporter = Exporter(tmp_path / "cache")
    with pytest.raises(EngineError, match="lacks some of its weights"):
        await exporter.export(folder)
    assert exporter.known(folder) is None


async def test_commands_say_how_they_ended():
    assert await module._run([sys.executable, "-c", "print('done')"], 60, "nothing") == "done\n"
    with pytest.raises(EngineError, match=r"it failed \(3\): why"):
        await module._run([sys.executable, "-c", "print('why'); raise SystemExit(3)"], 60, "it")


async def test_a_command_that_takes_too_long_is_ended():
    with pytest.raises(EngineError, match="longer than"):
        await module._run([sys.executable, "-c", "input() or __import__('time').sleep(99)"], 0, "it")


def test_requirements_are_locked():
    lines = module.REQUIREMENTS.read_text().split()
    assert all("==" in line for line in lines)
    assert "torch==2.13.0" in lines
    assert any(line.startswith("optimum-intel==") for line in lines)


async def test_without_the_index_of_cpu_builds_torch_comes_from_the_usual_one(tmp_path, folder, monkeypatch):
    commands = Commands()
    installs = []

    async def run(command, limit_s, what):
        if "install" in command:
            installs.append(command)
            if "--index-url" in command:
                raise EngineError("no route")
        return await commands(command, limit_s, what)

    monkeypatch.setattr(module, "_run", run)
    await Exporter(tmp_path / "cache").export(folder)
    assert [command[-1] == "torch==2.13.0" for command in installs] == [True, True, False]
    assert "torch==2.13.0" not in installs[2]
