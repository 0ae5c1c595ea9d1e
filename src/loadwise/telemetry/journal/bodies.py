"""How rows and request ids lie in the journal's file: compressed bodies, and eight bytes per id."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

# MessagePack's marks of an array, and how long their heads are.
_ARRAY_16, _ARRAY_32 = 0xDC, 0xDD
_HEADS: Final = {**dict.fromkeys(range(0x90, 0xA0), 1), _ARRAY_16: 3, _ARRAY_32: 5}
_DIGEST: Final = 8
# The hardest level would take four times the time for a twentieth of the room.
LEVEL: Final = 1


def packed(body: bytes, level: int = LEVEL) -> bytes:
    """An array of encoded rows, compressed."""
    return zlib.compress(body, level)


def array_of(rows: Sequence[bytes]) -> bytes:
    """Encoded rows as one array."""
    return msgspec.msgpack.encode([msgspec.Raw(row) for row in rows])


def joined(bodies: Iterable[bytes], rows: int, level: int = LEVEL) -> bytes:
    """Bodies with so many rows together as one body; only one of them is unpacked at a time.

    Raises `zlib.error` or `ValueError` for a damaged one.
    """
    packer = zlib.compressobj(level)
    parts = [packer.compress(bytes([_ARRAY_32]) + rows.to_bytes(4, "big"))]
    parts += [packer.compress(_without_head(zlib.decompress(body))) for body in bodies]
    return b"".join([*parts, packer.flush()])


def _without_head(body: bytes) -> memoryview:
    if not body or body[0] not in _HEADS:
        raise ValueError("the rows of a batch are no array")
    return memoryview(body)[_HEADS[body[0]] :]


def digest(request_id: str) -> bytes:
    """What stands for a request's id: others may share it, so rows are looked at too."""
    return blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()


def digests(request_ids: Iterable[str]) -> bytes:
    """The digests of some ids in a row."""
    return b"".join([digest(each) for each in request_ids])


def holds(row: bytes, wanted: bytes) -> bool:
    """Whether a digest is among those of a row."""
    at = row.find(wanted)
    while at > 0 and at % _DIGEST:
        at = row.find(wanted, at + 1)
    return at >= 0
