"""`loadwise serve` with the models that ship: a real process, real engines, the real openai client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest

import loadwise_models

MEMBERS = ["fast", "balanced", "accurate"]


def said(process: subprocess.Popen[str]) -> str:
    """The address that the server says it serves on; fails with its output when it ends before."""
    lines = []
    for line in process.stderr or ():
        lines.append(line)
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("event") == "serving":
            return str(event["url"])
    raise AssertionError("the server ended:\n" + "".join(lines))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    home: Path = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOADWISE_")}
    environment |= {"XDG_STATE_HOME": str(home / "state"), "XDG_CACHE_HOME": str(home / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-c", "from loadwise.cli import main; main()", "serve", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield said(process), process
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.fixture
def client(server: tuple[str, subprocess.Popen[str]]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server[0] + "/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def view(server: tuple[str, subprocess.Popen[str]], name: str) -> dict:
    with urllib.request.urlopen(f"{server[0]}/v1/optimization/{name}", timeout=30) as answer:
        return json.load(answer)


def test_the_family_lists_its_members(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["auto", *MEMBERS]


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_named_is_the_member_that_answers(client: openai.OpenAI, member: str) -> None:
    answer = client.completions.with_raw_response.create(
        model=member, prompt="def read_lines(path):\n", max_tokens=24, temperature=0
    )
    assert answer.headers["x-loadwise-member"] == member
    completion = answer.parse()
    assert completion.usage is not None
    assert completion.usage.completion_tokens <= 24
    assert completion.choices[0].text


def test_auto_chooses_and_says_why(client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": "Reverse a list."}], max_tokens=8
    )
    assert answer.headers["x-loadwise-member"] in MEMBERS
    assert answer.headers["x-loadwise-strategy"] in {"performance", "balanced", "quality"}
    assert answer.headers["x-loadwise-reason"]
    assert answer.parse().choices[0].message.role == "assistant"


def test_a_stream_carries_the_same_text_as_the_whole_answer(client: openai.OpenAI) -> None:
    asked = {"model": "fast", "prompt": "import os\n", "max_tokens": 16, "temperature": 0, "seed": 1}
    whole = client.completions.create(**asked).choices[0].text
    chunks = client.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole


def test_greedy_answers_are_the_same_each_time(client: openai.OpenAI) -> None:
    asked = {"model": "accurate", "prompt": "class Queue:\n", "max_tokens": 16, "temperature": 0}
    assert (
        client.completions.create(**asked).choices[0].text
        == client.completions.create(**asked).choices[0].text
    )


def test_a_prompt_beyond_the_context_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.completions.create(model="auto", prompt="x = 1\n" * 2000, max_tokens=1)
    assert refusal.value.code == "context_length_exceeded"


def test_larger_members_are_better_and_their_losses_are_the_qualities(
    server: tuple[str, subprocess.Popen[str]],
) -> None:
    measured = loadwise_models.quality()
    losses = [measured[name].held_out_loss_nats_per_token for name in MEMBERS]
    assert losses == sorted(losses, reverse=True)
    shown = {model["model_id"]: model for model in view(server, "ensemble")["models"]}
    assert shown["accurate"]["quality"] == 1.0
    assert shown["accurate"]["default"]
    assert shown["fast"]["quality"] < shown["balanced"]["quality"] < 1.0
    assert {model["engine"] for model in shown.values()} == {"openvino"}


def test_the_load_is_measured_and_what_cannot_be_read_is_named(
    server: tuple[str, subprocess.Popen[str]],
) -> None:
    metrics = view(server, "metrics")
    assert metrics["queue_depth"] == 0
    assert 0.0 <= metrics["overall_load_score"] <= 1.0
    for name in metrics["absent"]:
        assert metrics[name] is None


def test_three_resident_models_use_less_than_one_and_a_half_gigabytes(
    server: tuple[str, subprocess.Popen[str]],
) -> None:
    process = psutil.Process(server[1].pid)
    family = [process, *process.children(recursive=True)]
    assert sum(member.memory_full_info().pss for member in family) < 1.5e9
