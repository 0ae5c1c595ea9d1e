"""Tokens are chosen by each row's own rules, whoever shares the batch."""

import math
from collections import Counter

import pytest

torch = pytest.importorskip("torch")

from loadwise.torch_engine.sampler import Sampler
from loadwise.torch_engine.sequence import Sampled, Sampling, Sequence

# Chances 1/2, 1/4, 1/8, 1/8 of tokens 3, 1, 0, 2.
LOGITS = torch.tensor([[0.125, 0.25, 0.125, 0.5]]).log()


def row(
    number: int = 1, prompt: tuple[int, ...] = (0,), output: tuple[int, ...] = (), **rules: object
) -> Sequence:
    sampling = Sampling(max_tokens=99, **rules)  # type: ignore[arg-type]
    sequence = Sequence(sequence_id=number, prompt=prompt, sampling=sampling, arrived_s=0.0)
    sequence.output.extend(output)
    return sequence


def one(sequence: Sequence, logits: torch.Tensor = LOGITS, eos: tuple[int, ...] = ()) -> Sampled:
    return Sampler(eos).sample(logits, [sequence])[0]


def drawn(rules: dict[str, object], count: int = 4000) -> Counter[int]:
    sampler, sequence = Sampler(()), row(seed=1, **rules)
    return Counter(sampler.sample(LOGITS, [sequence])[0].token_id for _ in range(count))


def test_greedy_takes_the_most_likely() -> None:
    assert one(row(temperature=0.0)).token_id == 3


@pytest.mark.parametrize(
    ("rules", "chances"),
    [
        ({}, {3: 0.5, 1: 0.25, 0: 0.125, 2: 0.125}),
        ({"top_k": 2}, {3: 2 / 3, 1: 1 / 3}),
        ({"top_p": 0.6}, {3: 2 / 3, 1: 1 / 3}),
        ({"top_p": 0.0}, {3: 1.0}),
        ({"min_p": 0.4}, {3: 2 / 3, 1: 1 / 3}),
        ({"temperature": 0.5}, {3: 16 / 22, 1: 4 / 22, 0: 1 / 22, 2: 1 / 22}),
        ({"temperature": 1e-9}, {3: 1.0}),
    ],
)
def test_draws_follow_the_distribution_that_the_rules_leave(
    rules: dict[str, object], chances: dict[int, float]
) -> None:
    counts = drawn(rules)
    assert set(counts) == set(chances)
    for token, chance in chances.items():
        assert counts[token] / 4000 == pytest.approx(chance, abs=0.03)


def test_seed_decides_alone_or_among_others() -> None:
    alone, among = Sampler(()), Sampler(())
    mine, again = row(1, seed=9, top_k=3), row(1, seed=9, top_k=3)
    others = [
        row(2, temperature=0.0, logprobs=1),
        row(3, top_p=0.5),
        row(4, min_p=0.2, frequency_penalty=1.0),
    ]
    batch = LOGITS.repeat(4, 1)
    first = [alone.sample(LOGITS, [mine])[0].token_id for _ in range(40)]
    second = [among.sample(batch, [*others, again])[3].token_id for _ in range(40)]
    assert first == second
    assert len(set(first)) > 1


def test_frequency_and_presence_penalties_count_the_answer_only() -> None:
    flat = torch.tensor([[0.0, 1.0, 0.5, 0.9]])
    assert one(row(temperature=0.0, prompt=(1, 1), presence_penalty=1.0), flat).token_id == 1
    assert one(row(temperature=0.0, output=(1,), presence_penalty=0.2), flat).token_id == 3
    assert one(row(temperature=0.0, output=(1, 3, 3), frequency_penalty=0.3), flat).token_id == 1


def test_penalties_grow_with_what_the_sampler_itself_chose() -> None:
    sampler, sequence = Sampler(()), row(temperature=0.0, presence_penalty=2.0)
    flat = torch.tensor([[0.0, 1.0, 0.5, 0.9]])
    assert [sampler.sample(flat, [sequence])[0].token_id for _ in range(4)] == [1, 3, 2, 0]
    sampler.forget(sequence)
    assert sampler.sample(flat, [sequence])[0].token_id == 1


def test_repetition_penalty_counts_the_prompt_too() -> None:
    signs = torch.tensor([[2.0, 1.9, -1.0, -3.0]])
    assert one(row(temperature=0.0, prompt=(0,), repetition_penalty=2.0), signs).token_id == 1
    assert one(row(temperature=0.0, prompt=(0, 1), repetition_penalty=1.01), signs).token_id == 0


def test_end_of_sequence_and_stops_wait_for_min_tokens() -> None:
    rules = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": (1, 999)}
    assert one(row(**rules), eos=(3,)).token_id in {0, 2}
    assert one(row(output=(0, 0), **rules), eos=(3,)).token_id == 3


def test_logprobs_are_the_models_own_whatever_the_rules() -> None:
    sampled = one(row(temperature=0.0, logprobs=2, output=(3,), presence_penalty=2.0))
    assert sampled.token_id == 1
    assert sampled.logprob == pytest.approx(math.log(0.25))
    assert sampled.top is not None
    assert [token for token, _ in sampled.top] == [3, 1]
    assert sampled.top[0][1] == pytest.approx(math.log(0.5))
    assert one(row(temperature=0.0, logprobs=0)).top == ()
    assert one(row(temperature=0.0)).logprob is None
