"""What the engine answers is what the model answers on its own."""

from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from loadwise.torch_engine.engine import Engine
from loadwise.torch_engine.loading import LoadedModel, load
from loadwise.torch_engine.runner import Runner
from loadwise.torch_engine.scheduler import Limits
from loadwise.torch_engine.sequence import Finish, Sampling, Sequence

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]


@pytest.fixture(scope="module", params=DEVICES)
def loaded(request: pytest.FixtureRequest, llama_folder: Path) -> LoadedModel:
    return load(llama_folder, device=request.param, dtype="float32")


def make_engine(loaded: LoadedModel, places: int = 4, prefill_tokens: int = 512) -> Engine:
    limits = Limits(
        places=places,
        waiting=16,
        context_tokens=loaded.context_tokens,
        prefill_tokens=prefill_tokens,
        vocabulary=loaded.vocabulary,
    )
    clock = SimpleNamespace(now=0.0)
    runner = Runner(loaded, places, loaded.context_tokens)
    return Engine(runner, limits, loaded.eos_token_ids, lambda: clock.now)


def own_answer(loaded: LoadedModel, prompt: list[int], tokens: int) -> list[int]:
    ids = torch.tensor([prompt], device=loaded.device)
    answer = loaded.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
    )[0, len(prompt) :].tolist()
    return answer[:-1] if answer[-1] in loaded.eos_token_ids else answer


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    lengths = [1, 3, 17, 40, 8, 64, 2, 30][:count]
    return [torch.randint(3, 60, (length,), generator=generator).tolist() for length in lengths]


def greedy(tokens: int) -> Sampling:
    return Sampling(max_tokens=tokens, temperature=0.0)


@pytest.mark.parametrize("prefill_tokens", [512, 7])
def test_greedy_tokens_equal_generate_while_others_join_and_leave(
    loaded: LoadedModel, prefill_tokens: int
) -> None:
    engine = make_engine(loaded, places=3, prefill_tokens=prefill_tokens)
    wanted = [(prompt, 4 + 5 * index % 23) for index, prompt in enumerate(prompts(8))]
    due = list(wanted)
    sequences: list[Sequence] = []
    while due or engine.busy:
        if due:
            prompt, tokens = due.pop(0)
            sequences.append(engine.submit(prompt, greedy(tokens)))
        engine.step()
        engine.step()
    answers = [sequence.output for sequence in sequences]
    assert answers == [own_answer(loaded, prompt, tokens) for prompt, tokens in wanted]


def test_answer_ends_when_the_context_is_full(loaded: LoadedModel) -> None:
    engine = make_engine(loaded)
    prompt = prompts(6)[5]
    sequence = engine.submit(prompt, Sampling(max_tokens=1000, temperature=0.0, ignore_eos=True))
    while engine.busy:
        engine.step()
    assert (sequence.length, sequence.finish) == (loaded.context_tokens, Finish.LENGTH)


def test_end_of_sequence_token_ends_the_answer_and_is_not_shown(loaded: LoadedModel) -> None:
    prompt = prompts(3)[2]
    engine = make_engine(loaded)
    free = engine.submit(prompt, Sampling(max_tokens=12, temperature=0.0, ignore_eos=True))
    while engine.busy:
        engine.step()
    stop = free.output[5]
    stopped = engine.submit(prompt, Sampling(max_tokens=12, temperature=0.0, stop_token_ids=(stop,)))
    while engine.busy:
        engine.step()
    assert stopped.output == free.output[: free.output.index(stop)]
    assert stopped.finish is Finish.STOP


def test_seeded_answer_is_the_same_alone_and_among_others(loaded: LoadedModel) -> None:
    sampling = Sampling(max_tokens=20, temperature=1.3, top_k=30, top_p=0.9, seed=5, ignore_eos=True)
    prompt = prompts(3)[1]
    alone_engine, busy_engine = make_engine(loaded), make_engine(loaded)
    alone = alone_engine.submit(prompt, sampling)
    others = Sampling(max_tokens=9, temperature=0.8, min_p=0.01, ignore_eos=True)
    mates = [busy_engine.submit(mate, others) for mate in prompts(2)]
    among = busy_engine.submit(prompt, sampling)
    for engine in (alone_engine, busy_engine):
        while engine.busy:
            engine.step()
    assert among.output == alone.output
    assert all(len(mate.output) == 9 for mate in mates)


def test_cancelled_sequence_frees_its_place_within_one_step(loaded: LoadedModel) -> None:
    engine = make_engine(loaded, places=1)
    first = engine.submit(prompts(1)[0], greedy(50))
    second = engine.submit(prompts(2)[1], greedy(3))
    engine.step()
    assert (first.place, second.place) == (0, None)
    engine.cancel(first)
    outputs = engine.step()
    assert outputs[0].finish is Finish.CANCELLED
    assert second.place == 0
    while engine.busy:
        engine.step()
    assert second.output == own_answer(loaded, list(second.prompt), 3)
