"""What counts as the same answer, and what a call's examples remember."""

from collections import namedtuple
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from loadwise.compiler.examples import MAX_EXAMPLES, Examples, copied, signature, size_bytes
from loadwise.compiler.parameters import ParameterKey
from loadwise.compiler.timing import measure
from loadwise.compiler.verify import difference, verify
from loadwise.errors import BuildError
from loadwise.testing import FakeClock

NAN, INF = float("nan"), float("inf")
Pair = namedtuple("Pair", "left right")


def t(*values: float, dtype: Any = None) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (t(1.0, 2.0), t(1.0, 2.00001)),
        (t(1.0, dtype=torch.bfloat16), t(1.01, dtype=torch.bfloat16)),
        ({"a": [t(1.0), None, 3]}, {"a": (t(1.0), None, 3)}),
        (t(NAN, INF, -INF, 1.0), t(NAN, INF, -INF, 1.0)),
        (t(1, 2, dtype=torch.long), t(1, 2, dtype=torch.long)),
        (torch.empty(0), torch.empty(0)),
    ],
)
def test_equal_up_to_rounding_is_the_same_answer(expected: Any, actual: Any) -> None:
    assert difference(expected, actual) is None


@pytest.mark.parametrize(
    ("expected", "actual", "why"),
    [
        (t(1.0, 2.0), t(1.0, 2.1), "answer: differs by 0.05"),
        (t(1.0), t(1.0, 2.0), r"float32\[2\]"),
        (t(1.0), t(1.0, dtype=torch.float64), "float64"),
        (t(1.0, NAN), t(1.0, 2.0), "NaN"),
        (t(1.0, 2.0), t(1.0, NAN), "NaN"),
        (t(INF), t(-INF), "infinities"),
        (t(1, 2, dtype=torch.long), t(1, 3, dtype=torch.long), "other values"),
        ({"a": t(1.0)}, {"b": t(1.0)}, "other keys"),
        ([t(1.0)], [t(1.0), t(1.0)], "other length"),
        ([t(1.0), 3], [t(1.0), 4], r"answer\[1\]: 4 instead of 3"),
        (t(1.0), 1.0, "no tensor"),
    ],
)
def test_anything_else_is_named(expected: Any, actual: Any, why: str) -> None:
    import re

    found = difference(expected, actual)
    assert found is not None
    assert re.search(why, found)


def test_what_a_call_writes_into_its_arguments_is_compared_too() -> None:
    def adds_in_place(x: torch.Tensor) -> int:
        x.add_(1.0)
        return 0

    example = (t(1.0),)
    verify(adds_in_place, adds_in_place, [(example, {})])
    assert torch.equal(example[0], t(1.0))
    with pytest.raises(BuildError, match="arguments afterwards"):
        verify(adds_in_place, lambda x: 0, [(example, {})])


def test_times_are_medians_of_runs_in_turns_after_a_warm_up() -> None:
    clock, order = FakeClock(), []

    def takes(name: str, *seconds: float) -> Any:
        left = list(seconds)

        def call(x: Any) -> None:
            order.append(name)
            clock.advance(left.pop(0) if len(left) > 1 else left[0])

        return call

    timing = measure(takes("a", 9.0, 0.4), takes("b", 9.0, 0.2), ((1,), {}), clock)
    assert (timing.original_s, timing.compiled_s) == (pytest.approx(0.4), pytest.approx(0.2))
    assert timing.speedup == pytest.approx(2.0)
    assert order[:4] == ["a", "b", "a", "b"]


def test_examples_are_copies_one_per_signature_and_bounded() -> None:
    examples = Examples()
    x = t(1.0, 2.0)
    assert examples.learn((x,), {})
    x.zero_()
    assert not examples.learn((t(5.0, 6.0),), {})
    for size in range(3, 12):
        assert not examples.learn((torch.zeros(size),), {"flag": True})
    kept = examples.all()
    assert len(kept) == MAX_EXAMPLES
    assert torch.equal(kept[0][0][0], t(1.0, 2.0))
    kept[0][0][0].zero_()
    assert torch.equal(examples.all()[0][0][0], t(1.0, 2.0))


def test_example_too_large_to_keep_is_not_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadwise.compiler.examples.MAX_EXAMPLE_BYTES", 8)
    examples = Examples()
    assert not examples.learn((torch.zeros(3),), {})
    assert not examples.known
    assert examples.learn((torch.zeros(2),), {})


def test_preferred_example_comes_first_and_the_others_stay_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    examples = Examples()
    for size in range(1, MAX_EXAMPLES + 1):
        examples.learn((torch.zeros(size),), {})
    examples.prefer((torch.zeros(9),), {})
    assert [len(args[0]) for args, _ in examples.all()] == [9, 1, 2, 3]
    examples.prefer((torch.zeros(2),), {})
    assert [len(args[0]) for args, _ in examples.all()] == [2, 9, 1, 3]
    monkeypatch.setattr("loadwise.compiler.examples.MAX_EXAMPLE_BYTES", 40)
    examples.prefer((torch.zeros(9),), {})
    assert [len(args[0]) for args, _ in examples.all()] == [9, 1]


def test_copies_keep_the_shape_of_arguments() -> None:
    tree = {"pair": Pair(t(1.0), [2]), "plain": (t(3.0), "text")}
    twin = copied(tree)
    assert isinstance(twin["pair"], Pair)
    assert twin["pair"].left is not tree["pair"].left
    assert twin["plain"][1] == "text"
    assert size_bytes(tree) == 8
    assert signature(tree) == signature(twin)
    assert signature(t(1.0)) != signature(t(1.0, 2.0))
    assert signature(object()) == signature(object())


def test_key_breaks_when_a_submodule_is_replaced() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()).eval()
    key = ParameterKey(model)
    assert key.holds()
    model[1] = torch.nn.GELU()
    assert not key.holds()


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model[0].register_forward_hook(lambda module, args, answer: answer + 1),
        lambda model: model[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
        lambda model: setattr(model[0], "forward", lambda x: x),
        lambda model: model.append(torch.nn.ReLU()),
    ],
    ids=["hook", "pre-hook", "forward", "appended"],
)
def test_key_breaks_when_an_adapter_changes_what_a_call_runs(change: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()).eval()
    key = ParameterKey(model)
    change(model)
    assert not key.holds()


def test_key_holds_again_when_training_of_a_part_has_ended() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout()).eval()
    key = ParameterKey(model)
    model[1].train()
    assert key.training
    assert not key.holds()
    model.eval()
    assert key.holds()
