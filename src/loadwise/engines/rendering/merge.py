"""Several sequences of one request, read as one stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from loadwise.errors import EngineError
from loadwise.ports import TokenEvent, TokenStream


async def merged(streams: Sequence[TokenStream]) -> AsyncGenerator[tuple[int, TokenEvent], None]:
    """Events of all streams as they come, each with its stream's index; the first failure is raised."""
    if len(streams) == 1:
        async for event in streams[0]:
            yield 0, event
        return
    queue: asyncio.Queue[tuple[int, TokenEvent | EngineError | None]] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(index, stream, queue)) for index, stream in enumerate(streams)]
    try:
        open_streams = len(pumps)
        while open_streams:
            index, item = await queue.get()
            if isinstance(item, EngineError):
                raise item
            if item is None:
                open_streams -= 1
            else:
                yield index, item
    finally:
        for pump in pumps:
            pump.cancel()


async def _pump(
    index: int, stream: TokenStream, queue: asyncio.Queue[tuple[int, TokenEvent | EngineError | None]]
) -> None:
    try:
        async for event in stream:
            queue.put_nowait((index, event))
    except EngineError as error:
        queue.put_nowait((index, error))
    else:
        queue.put_nowait((index, None))
