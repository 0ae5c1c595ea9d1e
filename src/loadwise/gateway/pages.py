"""Serves the dashboard's files; they hold no figures and no keys, so they are open to all."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from loadwise.gateway.asgi import Exchange
from loadwise.telemetry.dashboard import HEADERS, assets


async def page(exchange: Exchange) -> None:
    """The file at the exchange's path; 304 where the browser has it already."""
    asset = assets()[exchange.scope["path"]]
    headers = [(name.encode(), value.encode()) for name, value in (*HEADERS, ("etag", asset.etag))]
    if exchange.header(b"if-none-match") == asset.etag:
        await exchange.reply(304, b"", asset.content_type.encode(), headers)
    else:
        await exchange.reply(200, asset.body, asset.content_type.encode(), headers)


def include_pages(app: FastAPI) -> None:
    """The application serves the dashboard's files, as a plugin's host does."""
    for path in assets():
        app.add_api_route(path, _respond, methods=["GET"], include_in_schema=False)


async def _respond(request: Request) -> Response:
    asset = assets()[request.scope["path"]]
    return Response(asset.body, media_type=asset.content_type, headers={**dict(HEADERS), "etag": asset.etag})
