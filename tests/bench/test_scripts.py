"""The benchmark scripts run from end to end against a server, and name no folder of the machine."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from loadwise.bench.prompts import TextPrompts

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("servers", "closed_loop", "compare_trace", "engine_throughput")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A tokenizer that counts words as the stub does."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_the_comparison_on_a_trace_saves_tables_of_both_loads(
    stub: Any, scripts: dict[str, ModuleType], words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["t_s,input_tokens,output_tokens", *(f"{t / 4},40,8" for t in range(9))]
    (tmp_path / "trace.csv").write_text("\n".join(lines))
    monkeypatch.setattr(scripts["compare_trace"], "stop_servers_when_told", lambda: None)
    options = ["--duration", "0.5", "--offsets", "2", "--settle", "0", "--rate", "20"]
    files = [
        "--trace",
        str(tmp_path / "trace.csv"),
        "--tokenizer",
        str(words),
        "--out",
        str(tmp_path / "out.json"),
    ]
    scripts["compare_trace"].main(["--url", stub.url, *options, *files])
    saved = json.loads((tmp_path / "out.json").read_text())
    assert saved["twice"]["rate_per_s"] == 40.0
    assert set(saved["twice"]["runs"]) == {"auto", "fast", "accurate"}
    assert set(saved["half"]["runs"]) == {"auto", "accurate"}
    assert str(tmp_path) not in json.dumps(saved)
    assert (tmp_path / "out_half_auto.png").is_file()


@pytest.mark.parametrize("stream", [True, False])
def test_the_closed_loop_counts_every_token(
    stub: Any, scripts: dict[str, ModuleType], words: Path, stream: bool
) -> None:
    loop = scripts["closed_loop"]
    workload = loop.Workload("fast", TextPrompts.from_path(words, 0), 10, 4, stream=stream)
    assert loop.tokens_per_s(stub.url, workload, workload.requests(6), 3) > 0
    assert len({body["prompt"] for body in stub.seen}) == len(stub.seen) == 6
    assert {body.get("stream", False) for body in stub.seen} == {stream}


@pytest.mark.parametrize(
    ("model", "message"), [("short", "3 tokens instead of 4"), ("broken", "engine died")]
)
def test_an_answer_that_is_not_whole_stops_the_benchmark(
    stub: Any, scripts: dict[str, ModuleType], words: Path, model: str, message: str
) -> None:
    loop = scripts["closed_loop"]
    workload = loop.Workload(model, TextPrompts.from_path(words, 0), 10, 4)
    with pytest.raises(SystemExit, match=message):
        loop.tokens_per_s(stub.url, workload, workload.requests(1), 1)


def test_missing_preloads_are_named(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"libiomp5\.so"):
        scripts["engine_throughput"].preloads(tmp_path)


def test_the_setting_asked_for_is_how_vllm_is_started(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    throughput = scripts["engine_throughput"]
    arguments = argparse.Namespace(vllm=tmp_path, model=tmp_path / "balanced")
    setting = next(setting for setting in throughput.SETTINGS if setting.name == "float32, all cores")
    server = throughput.vllm_server(arguments, setting, tmp_path)
    assert list(server.command)[-2:] == ["--dtype", "float32"]
    assert server.env["VLLM_CPU_OMP_THREADS_BIND"] == throughput.ALL_CORES
    assert "LD_PRELOAD" not in server.env
    assert str(tmp_path) not in scripts["servers"].shown(server.command)


def test_a_server_that_ends_at_once_is_named_with_its_log(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    server = scripts["servers"].Server("x", command, "http://127.0.0.1:1", tmp_path / "x.log", {}, "/health")
    with pytest.raises(SystemExit, match=r"x ended with code 3; see .*x\.log"), server:
        pass
