"""What is tried beside requests takes memory for what it writes, not for the cache that serves."""

import sys
from pathlib import Path

import psutil
import pytest

torch = pytest.importorskip("torch")

from loadwise.compiler.examples import LARGE_BYTES, copied
from loadwise.compiler.verify import difference
from loadwise.torch_engine.memory import PART_BYTES, parts, thin_copy, untouched

MIB = 1024**2
linux = pytest.mark.skipif(sys.platform != "linux", reason="pages are counted on Linux")


def resident() -> int:
    return psutil.Process().memory_info().rss


@linux
def test_zeros_take_memory_only_where_they_are_written() -> None:
    before = resident()
    made = untouched((512, MIB // 4), torch.float32)
    assert not bool(made[7].any())
    made[7] = 1.0
    assert resident() - before < 32 * MIB
    assert float(made.sum()) == MIB // 4


@linux
def test_a_copy_of_a_cache_takes_memory_for_its_written_rows_and_is_compared_without_more() -> None:
    cache = untouched((512, MIB // 4), torch.float32)
    cache[3, 5] = 2.0
    before = resident()
    twin = copied({"keys": [cache]})
    assert difference({"keys": [cache]}, twin) is None
    twin["keys"][0][3, 5] = 2.5
    assert difference({"keys": [cache]}, twin) == (
        "answer['keys'][0]: differs by 0.25 of its size (0.0001 allowed)"
    )
    assert resident() - before < 64 * MIB
    assert float(cache[3, 5]) == 2.0


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(3 * PART_BYTES),
        torch.arange(2.0 * LARGE_BYTES).reshape(-1, 4).t(),
        torch.ones(2, LARGE_BYTES, dtype=torch.bfloat16),
        torch.zeros(LARGE_BYTES, 0),
        torch.tensor(1.0),
    ],
    ids=["flat", "turned", "half", "empty", "single"],
)
def test_large_tensors_of_any_layout_are_copied_whole(tensor: torch.Tensor) -> None:
    twin = copied(tensor)
    assert torch.equal(twin, tensor)
    assert twin.is_contiguous()
    assert twin.data_ptr() != tensor.data_ptr() or tensor.numel() == 0
    assert torch.equal(thin_copy(tensor), tensor) if tensor.dim() else True


def test_parts_are_the_whole_in_pieces_of_bounded_size() -> None:
    tensor = torch.arange(1_000_000.0).reshape(1000, 1000)
    pieces = parts(tensor)
    assert torch.equal(torch.cat(tuple(pieces)), tensor)
    assert max(piece.numel() * 4 for piece in pieces) <= PART_BYTES


@linux
def test_a_runner_s_examples_and_buckets_do_not_take_the_cache_again(llama_folder: Path) -> None:
    from loadwise.torch_engine.loading import load
    from loadwise.torch_engine.runner import Runner

    loaded = load(llama_folder)
    runner = Runner(loaded, 4000, loaded.context_tokens)
    whole = sum(layer.numel() * layer.element_size() for layer in (*runner.cache.keys, *runner.cache.values))
    assert whole > 100 * MIB
    before = resident()
    examples, buckets = runner.decode_examples(), list(runner.decode_buckets())
    assert len(examples) == 2
    assert len(buckets) > 10
    assert resident() - before < whole / 4
