"""An upstream that costs almost nothing: it looks for the end of a request and writes bytes made beforehand.

python benchmarks/static_upstream.py PORT
"""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop

MODEL = "stub"


def _answer(document: object) -> bytes:
    body = json.dumps(document).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


COMPLETION = _answer(
    {
        "id": "chatcmpl-static",
        "object": "chat.completion",
        "created": 1700000000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Light is scattered; blue most of all."},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 17, "completion_tokens": 8, "total_tokens": 25},
    }
)
MODELS = _answer(
    {
        "object": "list",
        "data": [{"id": MODEL, "object": "model", "created": 1700000000, "owned_by": "static"}],
    }
)
# Routers ask these before they send requests.
ABOUT = _answer({"status": "ok", "model_path": MODEL, "served_model_name": MODEL, "is_generation": True})


class Connection(asyncio.Protocol):
    """Requests with a content-length, one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A gateway connected."""
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        """Bytes came; every request that is whole is answered."""
        self._buffer += data
        while (end := _end(self._buffer)) is not None:
            request, self._buffer = self._buffer[:end], self._buffer[end:]
            self._transport.write(_reply(request))  # type: ignore[attr-defined]


def _end(buffer: bytes) -> int | None:
    head = buffer.find(b"\r\n\r\n")
    if head < 0:
        return None
    fields = buffer[:head].lower()
    if b"transfer-encoding: chunked" in fields:
        last = buffer.find(b"\r\n0\r\n\r\n", head)
        return None if last < 0 else last + 7
    at = fields.find(b"content-length:")
    length = 0 if at < 0 else int(fields[at + 15 :].partition(b"\r\n")[0])
    end = head + 4 + length
    return end if len(buffer) >= end else None


def _reply(request: bytes) -> bytes:
    if request.startswith(b"POST /v1/"):
        return COMPLETION
    return MODELS if request.startswith(b"GET /v1/models") else ABOUT


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
