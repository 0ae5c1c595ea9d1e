"""Workloads become requests: windows, rates, lengths and prompts of exactly the length asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from loadwise.bench.plan import Source, Workload, plan
from loadwise.bench.prompts import TextPrompts, WordPrompts, code_lines
from loadwise.errors import ConfigurationError
from loadwise.simulation.traces import TraceError


def byte_level_tokenizer() -> Tokenizer:
    from itertools import islice
    from random import Random

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(islice(code_lines(Random(0)), 500), trainer)
    return tokenizer


TOKENIZER = byte_level_tokenizer()


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 400), number=st.integers(0, 10_000), seed=st.integers(0, 100))
def test_text_prompts_have_exactly_the_length_asked_for(tokens: int, number: int, seed: int) -> None:
    prompt = TextPrompts(TOKENIZER, seed).make(number, tokens)
    length = len(prompt) if isinstance(prompt, list) else len(TOKENIZER.encode(prompt).ids)
    assert length == tokens
    assert prompt == TextPrompts(TOKENIZER, seed).make(number, tokens)


def test_prompts_differ_from_their_beginning_on() -> None:
    prompts = TextPrompts(TOKENIZER, 0)
    beginnings = {str(prompts.make(number, 30))[:10] for number in range(50)}
    assert len(beginnings) == 50


def test_a_prompt_that_no_cut_of_the_text_gives_is_sent_as_token_ids() -> None:
    class Merging:
        """Every text but the whole one counts more tokens than it should."""

        def encode(self, text: str) -> object:
            return TOKENIZER.encode(text if text.endswith("\n") else text + "\x00" * 9)

    prompt = TextPrompts(Merging(), 0).make(1, 17)  # type: ignore[arg-type]
    assert isinstance(prompt, list)
    assert len(prompt) == 17


def test_a_tokenizer_is_found_in_a_folder_or_by_its_file(tmp_path: Path) -> None:
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    by_folder = TextPrompts.from_path(tmp_path, 1).make(0, 20)
    assert by_folder == TextPrompts.from_path(tmp_path / "tokenizer.json", 1).make(0, 20)
    with pytest.raises(ConfigurationError, match="Cannot read the tokenizer"):
        TextPrompts.from_path(tmp_path / "none", 1)


def test_words_are_sized_by_the_servers_count() -> None:
    prompt = WordPrompts(2.0, 0).make(0, 30)
    assert len(str(prompt).split()) == 15
    assert WordPrompts(2.0, 0).make(1, 30) != prompt
    with pytest.raises(ConfigurationError, match="tokens_per_word"):
        WordPrompts(0.0, 0)


def trace_file(folder: Path) -> str:
    lines = ["t_s,input_tokens,output_tokens", *(f"{t},{100 + t},{10}" for t in range(101))]
    (folder / "trace.csv").write_text("\n".join(lines))
    return str(folder / "trace.csv")


def test_runs_of_a_trace_are_windows_over_its_whole_length(tmp_path: Path) -> None:
    source = Source(Workload(trace_file(tmp_path), duration_s=20.0), runs=5)
    assert [source.offset_s(run) for run in range(5)] == [0.0, 20.0, 40.0, 60.0, 80.0]
    last = source.arrivals(4).arrivals
    assert [a.input_tokens for a in last] == list(range(180, 200))
    assert last[0].t_s == 0.0


def test_a_trace_keeps_its_own_rate_unless_another_is_asked_for(tmp_path: Path) -> None:
    source = Source(Workload(trace_file(tmp_path), duration_s=100.0))
    assert len(source.arrivals().arrivals) == 100
    assert len(source.arrivals(rate_per_s=3.0).arrivals) == pytest.approx(300, rel=0.05)


def test_runs_of_a_generator_are_seeds() -> None:
    source = Source(Workload("poisson", rate_per_s=10.0, duration_s=20.0, seed=5), runs=2)
    assert source.arrivals(0) != source.arrivals(1)
    assert source.arrivals(1) == Source(Workload("poisson", 10.0, 20.0, seed=6)).arrivals(0)
    assert source.offset_s(1) == 0.0


def test_lengths_are_divided_and_cut_to_the_context(tmp_path: Path) -> None:
    fitted = Source(
        Workload(trace_file(tmp_path), duration_s=50.0, scale_lengths=10.0, context_tokens=12)
    ).arrivals()
    assert {a.output_tokens for a in fitted.arrivals} == {1}
    assert max(a.input_tokens for a in fitted.arrivals) == 11
    assert fitted.cut == sum(round((100 + t) / 10) > 11 for t in range(50))


def test_workloads_that_cannot_be_replayed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no file and none of poisson"):
        Source(Workload("nope"))
    with pytest.raises(ConfigurationError, match="needs --rate"):
        Source(Workload("poisson"))
    with pytest.raises(ConfigurationError, match="lasts 100 s, less than --duration 200"):
        Source(Workload(trace_file(tmp_path), duration_s=200.0))
    (tmp_path / "bad.csv").write_text("a,b\n")
    with pytest.raises(TraceError, match="line 1"):
        Source(Workload(str(tmp_path / "bad.csv")))


def test_requests_carry_what_was_planned() -> None:
    arrivals = Source(Workload("steps", rate_per_s=5.0, duration_s=10.0)).arrivals().arrivals
    requests = plan("fast", arrivals, TextPrompts(TOKENIZER, 0), first=100)
    assert [request.t_s for request in requests] == [arrival.t_s for arrival in arrivals]
    body = json.loads(requests[0].body)
    assert body["model"] == "fast"
    assert body["prompt"] == TextPrompts(TOKENIZER, 0).make(100, arrivals[0].input_tokens)
    assert body["max_tokens"] == arrivals[0].output_tokens == requests[0].output_tokens
