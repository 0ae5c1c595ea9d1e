"""A form of a model is held to the model itself: best tokens where they are clear, and held-out loss."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from loadwise.errors import ConfigurationError
from loadwise.torch_engine.agreement import MARGINS, SAME_TOP, agreement, coarser
from loadwise.torch_engine.forcing import Forcing
from loadwise.torch_engine.loading import load
from loadwise.torch_engine.runner import Runner
from loadwise.torch_engine.texts import Texts

N, V = 4000, 11
torch.manual_seed(1)
EXPECTED = torch.randn(N, V) * 4
TARGETS = torch.randint(V, (N,))


def changed(rows: int) -> torch.Tensor:
    """The expected logits, with another best token in so many clear positions; the loss stays."""
    actual, best = EXPECTED.clone(), EXPECTED.topk(2)
    clear = (best.values[:, 0] - best.values[:, 1] > 1.0).nonzero()[:rows, 0]
    first, second = best.indices[clear, 0], best.indices[clear, 1]
    actual[clear, first], actual[clear, second] = EXPECTED[clear, second], EXPECTED[clear, first]
    return actual


def test_equal_predictions_agree_wholly() -> None:
    found = agreement(EXPECTED, EXPECTED, TARGETS, "float32")
    assert (found.positions, found.same_top, found.loss_off, found.wrong) == (N, 1.0, 0.0, None)


def test_more_than_one_clear_position_in_a_thousand_is_wrong() -> None:
    assert agreement(EXPECTED, changed(2), TARGETS, "bfloat16").same_top >= SAME_TOP
    found = agreement(EXPECTED, changed(40), TARGETS, "bfloat16")
    assert found.wrong is not None
    assert "best token is the same" in found.wrong


def test_positions_that_may_go_either_way_in_the_precision_do_not_count() -> None:
    near = EXPECTED.clone()
    near[:, 1] = near[:, 0] = near.max(-1).values + 1.0
    near[:, 1] -= MARGINS["bfloat16"] / 2
    swapped = near.clone()
    swapped[:, [0, 1]] = near[:, [1, 0]]
    assert agreement(near, swapped, TARGETS, "bfloat16").clear == 0
    assert agreement(near, swapped, TARGETS, "float32").same_top == 0.0


def test_loss_off_by_more_than_a_thousandth_is_wrong() -> None:
    # Sharper predictions: every best token stays, the loss does not.
    found = agreement(EXPECTED, EXPECTED * 1.05, TARGETS, "float32")
    assert found.same_top == 1.0
    assert found.wrong is not None
    assert "loss on held-out texts is off by +" in found.wrong


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_single_number_that_is_none_is_wrong(odd: float) -> None:
    actual = EXPECTED.clone()
    actual[7, 3] = odd
    assert agreement(EXPECTED, actual, TARGETS, "float32").wrong == "it answers with infinities or NaN"


@pytest.fixture(scope="module")
def runner(llama_folder: Path) -> Runner:
    loaded = load(llama_folder)
    return Runner(loaded, 4, loaded.context_tokens)


def test_original_agrees_with_itself_token_by_token(runner: Runner) -> None:
    found = Forcing(runner.loaded, runner.original, 4).judge(runner.original, "float32")
    assert (found.same_top, found.wrong) == (1.0, None)
    assert found.positions == 4 * 71
    assert found.clear > 200


def test_step_that_forgets_what_it_read_is_found_out(runner: Runner) -> None:
    def forgetful(tokens: Any, positions: Any, mask: Any, keys: Any, values: Any, columns: Any) -> Any:
        logits = runner.original(tokens, positions, mask, keys, values, columns)
        for layer in (*keys, *values):
            layer.zero_()
        return logits

    assert Forcing(runner.loaded, runner.original, 4).judge(forgetful, "float32").wrong is not None


def test_judging_computes_as_the_engine_does_and_leaves_the_threads_as_they_were(runner: Runner) -> None:
    seen: list[tuple[int, bool]] = []
    before = torch.get_num_threads()

    def step(*args: Any) -> Any:
        seen.append((torch.get_num_threads(), args[0].is_contiguous()))
        return runner.original(*args)

    Forcing(runner.loaded, step, 4, prepare=runner.prepare).judge(step, "float32")
    assert set(seen) == {(1, True)}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("source", ["operator", "model folder"])
def test_given_texts_are_read_as_they_are_and_named(runner: Runner, source: str) -> None:
    tokens = [number % 61 for number in range(5 * 72 + 30)]
    forcing = Forcing(runner.loaded, runner.original, 4, texts=Texts(tokens, source))
    found = forcing.judge(runner.original, "float32")
    assert (found.texts, found.wrong, found.positions) == (source, None, 4 * 71)
    # From all over the texts: the first and the last whole stretch are among them.
    assert forcing.texts[0].tolist() == tokens[:72]
    assert forcing.texts[-1].tolist() == tokens[4 * 72 : 5 * 72]


def test_a_model_without_texts_writes_its_own_and_that_is_told(runner: Runner) -> None:
    judged = Forcing(runner.loaded, runner.original, 4).judge(runner.original, "float32")
    assert judged.as_json()["texts"] == "model"


@pytest.mark.parametrize(
    ("tokens", "why"), [(range(60), "but 144 are needed"), ([61] * 200, "vocabulary of 61")]
)
def test_texts_that_cannot_be_read_are_refused_with_the_reason(runner: Runner, tokens: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Forcing(runner.loaded, runner.original, 4, texts=Texts(list(tokens), "operator"))


def test_step_that_serves_in_bfloat16_is_held_to_the_model_in_fp32(llama_folder: Path) -> None:
    exact, served = load(llama_folder), load(llama_folder, dtype="bfloat16")
    runners = [Runner(loaded, 4, loaded.context_tokens) for loaded in (exact, served)]
    forcing = Forcing(exact, runners[0].original, 4)
    found = forcing.judge(runners[1].original, coarser("float32", "bfloat16"), served=served)
    assert found.margin == MARGINS["bfloat16"]
    assert 0.0 < abs(found.loss_off) < 0.05


@pytest.mark.parametrize(
    ("form", "served", "margin"),
    [
        ("float32", "float32", "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("float16", "float32", "float16"),
        ("bfloat16", "float16", "bfloat16"),
    ],
)
def test_margin_is_that_of_the_coarser_numbers(form: str, served: str, margin: str) -> None:
    assert coarser(form, served) == margin
