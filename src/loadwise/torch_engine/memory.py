"""Zeros that take memory only where something is written: for caches that few rows of are ever used."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress
from math import prod

import torch

PART_BYTES = 1024**2


def untouched(size: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of zeros on the processor; on Linux, pages that were never written are not there."""
    count = prod(size)
    if sys.platform != "linux" or count == 0:
        return torch.zeros(*size, dtype=dtype)
    pages = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # One number in a huge page would take all of it; a kernel without huge pages knows no such advice.
    with suppress(OSError):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(*size)


def thin_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy on the processor that takes memory only for those parts that are not all zero."""
    made = untouched(tensor.shape, tensor.dtype)
    for target, source in zip(parts(made), parts(tensor), strict=True):
        if bool(source.any()):
            target.copy_(source)
    return made


def parts(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """Some rows each, about `PART_BYTES` in all, so that nothing has to be held whole a second time."""
    if tensor.dim() == 0 or tensor.numel() == 0:
        return (tensor,)
    row_bytes = tensor.numel() // len(tensor) * tensor.element_size()
    return tuple(tensor.split(max(1, PART_BYTES // max(1, row_bytes))))
