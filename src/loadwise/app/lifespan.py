"""What ends with an application, whatever its own lifespan does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI


def close_with(app: FastAPI, close: Callable[[], Awaitable[None]]) -> None:
    """`close` runs when the application stops, whatever its own lifespan does."""
    own = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(scope: Any) -> AsyncIterator[Any]:
        async with own(scope) as state:
            try:
                yield state
            finally:
                await close()

    app.router.lifespan_context = lifespan
