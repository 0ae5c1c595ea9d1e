"""The trainer, a few steps at a time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[1]))

from train import card, corpus, muon, network, tokenizer, train  # noqa: E402  # the scripts are no package on the path

TINY = network.Size(hidden=32, layers=2, heads=2, feed_forward=48)


def module(path: str, lines: range) -> corpus.Module:
    """A module of distinct, long lines."""
    return corpus.Module(path, "\n".join(f"a_rather_long_name_number_{n} = {n}" for n in lines))


def chosen_path() -> str:
    """A path that the hash keeps out of training."""
    return next(p for n in range(1000) if corpus.split([module(p := f"m{n}.py", range(9))]).held_out)


def test_held_out_modules_are_chosen_by_their_path_alone():
    path = chosen_path()
    other = module("other.py", range(100, 150))
    assert corpus.split([module(path, range(9)), other]).held_out[0].path == path
    assert corpus.split([other, module(path, range(50, 60))]).held_out[0].path == path


def test_a_near_copy_of_a_training_module_is_not_held_out():
    twin = module("other.py", range(8))
    assert corpus.split([module(chosen_path(), range(9)), twin]).held_out == ()


def test_broken_and_repeated_files_are_left_out(tmp_path: Path):
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("x = 1\n")
    (tmp_path / "bad.py").write_text("print 'old'\n")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "c.py").write_text("y = 2\n")
    assert [found.path for found in corpus.modules(tmp_path)] == ["a.py"]


def test_the_token_stream_marks_where_modules_begin_and_end():
    small = tokenizer.train_tokenizer(["x = 1\n" * 20], entries=300)
    stream = tokenizer.encode(small, [corpus.Module("a.py", "x = 1\n")])
    assert (stream[0], stream[-1]) == (small.token_to_id("<|bos|>"), small.token_to_id("<|endoftext|>"))
    assert small.decode(list(stream)) == "x = 1\n"


def test_an_epoch_visits_each_window_once_at_either_context():
    count = 200 * network.CONTEXT
    short = train.window_starts(count, train.SHORT, 0, seed=1)
    full = train.window_starts(count, network.CONTEXT, 0, seed=1)
    assert len(set(short)) == len(short) == 4 * len(full)
    assert {start - start % 1 for start in full} <= set(short)
    pool = train.POOL_BLOCKS
    assert set(full[:pool]) <= set(short[: 4 * pool])


def test_the_rate_warms_up_then_falls_to_zero():
    factors = [train.rate_factor(share) for share in (0, train.WARM_UP, 0.5, 1)]
    assert factors[0] == factors[3] == 0
    assert factors[1] == pytest.approx(1)
    assert 0.5 < factors[2] < 0.52


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_an_orthogonalised_matrix_has_singular_values_near_one(shape: tuple[int, int]):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(muon.orthogonalised(torch.randn(shape)))
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_the_parameter_count_is_the_models():
    model = network.Llama(TINY)
    assert network.parameters(TINY) == sum(weight.numel() for weight in model.parameters())


def test_logits_equal_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ours = network.Llama(TINY)
    config = transformers.LlamaConfig(
        vocab_size=network.VOCABULARY,
        hidden_size=TINY.hidden,
        intermediate_size=TINY.feed_forward,
        num_hidden_layers=TINY.layers,
        num_attention_heads=TINY.heads,
        rms_norm_eps=network.NORM_EPSILON,
        tie_word_embeddings=True,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.tie_weights()
    tokens = torch.randint(0, network.VOCABULARY, (2, 40))
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-4)


def test_a_run_that_is_interrupted_continues_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(network.SIZES, "tiny", TINY)
    stream = np.tile(np.arange(300, dtype="<u2"), 600)

    def run(folder: Path, stop: int) -> train.Trainer:
        plan = train.Plan("tiny", 4096, 1e9, 1024, 1024, 0.01, 0.01, 0.5, 1024, 6, 1)
        trainer = train.Trainer(plan, stream, stream, folder, "cpu")
        trainer.run(until_tokens=stop)
        return trainer

    run(tmp_path / "halves", 2048)
    halves = run(tmp_path / "halves", 4096)
    whole = run(tmp_path / "whole", 4096)
    assert halves.progress.tokens == whole.progress.tokens == 4096
    for ours, theirs in zip(halves.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert halves.progress.best < 8


def test_the_picture_has_a_line_for_each_member():
    drawn = card.picture([("fast", [(0, 5.0), (1e6, 4.0)]), ("accurate", [(0, 5.0), (1e6, 3.5)])])
    assert drawn.count('stroke-width="2"') == 2
    assert ">fast</text>" in drawn
