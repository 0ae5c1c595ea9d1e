"""Bodies of rows that are joined hold the same rows; digests find a request, and no other's end in them."""

from __future__ import annotations

import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.telemetry.journal.bodies import array_of, digest, digests, holds, joined, packed

batches = st.lists(st.lists(st.integers(), max_size=40), min_size=1, max_size=8)


@given(batches)
def test_joined_bodies_hold_every_row_in_order(found: list[list[int]]) -> None:
    bodies = [packed(array_of([msgspec.msgpack.encode(str(number)) for number in rows])) for rows in found]
    whole = msgspec.msgpack.decode(zlib.decompress(joined(bodies, sum(map(len, found)))))
    assert whole == [str(number) for rows in found for number in rows]


def test_a_batch_of_many_rows_is_joined_too() -> None:
    rows = [msgspec.msgpack.encode(number) for number in range(70_000)]
    body = joined([packed(array_of(rows)), packed(array_of(rows[:20]))], 70_020)
    assert msgspec.msgpack.decode(zlib.decompress(body)) == [*range(70_000), *range(20)]


@pytest.mark.parametrize("damaged", [b"", b"\x00", zlib.compress(b""), zlib.compress(b"\xc0")])
def test_a_damaged_body_is_not_joined(damaged: bytes) -> None:
    with pytest.raises((zlib.error, ValueError)):
        joined([packed(array_of([b"\x01"])), damaged], 2)


@given(st.lists(st.text(max_size=20), max_size=50), st.text(max_size=20))
def test_a_request_is_found_where_it_is_and_nowhere_else(names: list[str], wanted: str) -> None:
    assert holds(digests(names), digest(wanted)) == (wanted in names)


def test_a_digest_across_two_others_is_none() -> None:
    row = digests(["a", "b"])
    assert not holds(row, row[3:11])
    assert holds(row, row[8:])
