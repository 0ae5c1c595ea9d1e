"""Runs: prompts that fit the server's own count, none repeated, and failures named before they cost time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from loadwise.bench import runner as bench_runner
from loadwise.bench.client import Client, Target
from loadwise.bench.picture import draw_run
from loadwise.bench.prompts import TextPrompts, WordPrompts
from loadwise.bench.runner import Runner, choose_prompts, demo_tokenizer, samples_csv, server_qualities
from loadwise.errors import EngineError, MissingExtraError
from loadwise.simulation.workloads import Arrival


@pytest.fixture
def word_tokenizer(tmp_path: Path) -> Path:
    """A tokenizer that counts words as the stub does."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


async def test_the_shipped_tokenizer_is_used_where_the_server_agrees_with_it(
    stub: Any, word_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_runner, "demo_tokenizer", lambda: word_tokenizer)
    async with Client(Target(stub.url)) as client:
        assert isinstance(await choose_prompts(client, "auto", None, 0), TextPrompts)
        stub.tokens_per_word = 3
        prompts = await choose_prompts(client, "auto", None, 0)
    assert isinstance(prompts, WordPrompts)
    assert len(str(prompts.make(0, 30)).split()) == 10


async def test_the_tokenizer_that_is_given_is_the_one_used(stub: Any, word_tokenizer: Path) -> None:
    async with Client(Target(stub.url)) as client:
        assert isinstance(await choose_prompts(client, "auto", word_tokenizer, 0), TextPrompts)
    assert stub.seen == []


async def test_a_server_that_does_not_count_needs_a_tokenizer(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_runner, "demo_tokenizer", lambda: None)
    async with Client(Target(stub.url)) as client:
        with pytest.raises(EngineError, match="give --tokenizer"):
            await choose_prompts(client, "silent", None, 0)
        with pytest.raises(EngineError, match="cannot answer for 'refused': HTTP 429"):
            await choose_prompts(client, "refused", None, 0)


async def test_no_prompt_is_sent_twice(stub: Any) -> None:
    async with Client(Target(stub.url)) as client:
        runner = Runner(client, WordPrompts(1.0, 0))
        await runner.warm_up(["auto", "fast"])
        for _ in range(2):
            await runner.run("auto", [Arrival(0.0, 20, 2)] * 5, 1.0)
    prompts = [body["prompt"] for body in stub.seen]
    assert len(set(prompts)) == len(prompts) == 12


async def test_progress_is_told_from_none_to_all(stub: Any) -> None:
    told: list[tuple[str, int, int]] = []
    async with Client(Target(stub.url)) as client:
        runner = Runner(client, WordPrompts(1.0, 0), on_progress=lambda *report: told.append(report))
        run = await runner.run("fast", [Arrival(0.0, 3, 2)] * 3, 1.0)
    assert told == [("fast", ended, 3) for ended in range(4)]
    assert run.summary.answered == 3


async def test_a_server_that_is_not_loadwise_has_no_qualities(stub: Any) -> None:
    stub.qualities = None
    async with Client(Target(stub.url)) as client:
        assert await server_qualities(client) == {}


async def test_text_from_the_server_stays_in_its_column_and_is_no_formula(stub: Any) -> None:
    async with Client(Target(stub.url)) as client:
        run = await Runner(client, WordPrompts(1.0, 0)).run("=cmd,x", [Arrival(0.0, 3, 2)], 1.0)
    header, line = samples_csv(run.samples).splitlines()
    assert len(line.split(",")) == len(header.split(","))
    assert line.startswith("cmd;x,")


async def test_a_picture_without_matplotlib_names_the_extra(
    stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Client(Target(stub.url)) as client:
        run = await Runner(client, WordPrompts(1.0, 0)).run("fast", [Arrival(0.0, 3, 2)], 1.0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"loadwise\[bench\]"):
        draw_run(run, tmp_path / "a.png")


async def test_a_run_in_which_all_failed_can_be_drawn(stub: Any, tmp_path: Path) -> None:
    async with Client(Target(stub.url)) as client:
        run = await Runner(client, WordPrompts(1.0, 0)).run("refused", [Arrival(0.0, 3, 2)] * 2, 5.0)
    assert run.summary.failures == {"HTTP 429": 2}
    assert draw_run(run, tmp_path / "a.png").stat().st_size > 1000


def test_without_the_shipped_models_there_is_no_shipped_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "loadwise_models", None)
    assert demo_tokenizer() is None


def test_the_shipped_tokenizer_is_found_where_it_lies(
    monkeypatch: pytest.MonkeyPatch, word_tokenizer: Path
) -> None:
    class Models:
        @staticmethod
        def family() -> dict[str, Path]:
            return {"none": word_tokenizer.parent / "none", "fast": word_tokenizer.parent}

    monkeypatch.setitem(sys.modules, "loadwise_models", Models)
    assert demo_tokenizer() == word_tokenizer
