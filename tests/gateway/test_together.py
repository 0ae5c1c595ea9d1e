"""What is written together is sent together, in order, and nothing is kept."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from loadwise.gateway.together import Together

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Wire:
    """Keeps each piece that was sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def opened() -> tuple[Wire, Together]:
    wire = Wire()
    return wire, Together(wire, asyncio.get_running_loop())  # type: ignore[arg-type]


async def test_a_head_goes_out_with_the_body_that_follows_at_once() -> None:
    wire, transport = opened()
    transport.write(HEAD)
    transport.write(b"body")
    await asyncio.sleep(0)
    assert wire.sent == [HEAD + b"body"]


async def test_a_head_that_nothing_follows_goes_out_at_the_end_of_the_turn() -> None:
    wire, transport = opened()
    transport.write(HEAD)
    assert wire.sent == []
    await asyncio.sleep(0)
    assert wire.sent == [HEAD]
    transport.write(b"body")
    assert wire.sent == [HEAD, b"body"]


async def test_a_connection_that_closes_sends_its_head_first() -> None:
    wire, transport = opened()
    transport.write(HEAD)
    transport.close()
    await asyncio.sleep(0)
    assert (wire.sent, wire.closed, transport.is_closing()) == ([HEAD], True, True)


PIECES = st.lists(
    st.sampled_from([HEAD, b"HTTP/1.1 is what a body may begin with", b"data: 1\n\n", b"", None])
)


@given(PIECES)
def test_bytes_arrive_in_their_order_whatever_is_written_when(pieces: list[bytes | None]) -> None:
    async def written() -> list[bytes]:
        wire, transport = opened()
        for piece in pieces:
            if piece is None:
                await asyncio.sleep(0)
            else:
                transport.write(piece)
        await asyncio.sleep(0)
        return wire.sent

    assert b"".join(asyncio.run(written())) == b"".join(piece or b"" for piece in pieces)
