"""What the gateway costs: added latency at one connection, and requests per second per core.

Every figure stands beside the upstream's own: a stub that answers at once, asked directly and through
`loadwise serve --upstream` in turn, so that both meet the same noise of the machine.

    python benchmarks/gateway.py            # a table
    python benchmarks/gateway.py --json     # the same as JSON
    python benchmarks/gateway.py --bare     # the gateway and its client alone, without the optimizer
    python benchmarks/gateway.py --out benchmarks/results/gateway.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from saving import save
from servers import Server, free_port, stop_servers_when_told

GOAL_MS = 0.5


def request(model: str, stream: bool) -> bytes:
    """A small chat request on a connection that stays open."""
    turns = [
        {"role": "system", "content": "Answer shortly."},
        {"role": "user", "content": "Why is the sky blue?"},
    ]
    body = json.dumps({"model": model, "messages": turns, "max_tokens": 8, "stream": stream}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection:
    """One blocking connection, so that nothing but the servers is scheduled while it waits."""

    def __init__(self, port: int, model: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.requests = {stream: request(model, stream) for stream in (False, True)}

    def ask(self, stream: bool) -> tuple[float, float]:
        """(seconds to the first byte of the body, seconds to the end) of one answer."""
        began = time.perf_counter()
        self.socket.sendall(self.requests[stream])
        received = self.socket.recv(65536)
        # uvicorn sends a head as soon as it is known; what a client waits for is the first event.
        while received.find(b"\r\n\r\n") in (-1, len(received) - 4):
            received += self._more()
        first = time.perf_counter()
        while not complete(received):
            received += self._more()
        return first - began, time.perf_counter() - began

    def _more(self) -> bytes:
        piece = self.socket.recv(65536)
        if not piece:
            raise SystemExit("the server closed the connection in the middle of an answer")
        return piece


def complete(received: bytes) -> bool:
    """Whether an answer is whole: its last chunk, or as many bytes as its length says."""
    if received and not received.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"not an answer: {received[:600].decode(errors='replace')}")
    head, _, body = received.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return received.endswith(b"0\r\n\r\n")


def added_latency(direct: int, through: int, pairs: int, stream: bool) -> dict[str, float]:
    """Milliseconds, asked in turn: medians and p99 of both, and the median of what the gateway adds."""
    lines = [Connection(direct, "stub"), Connection(through, "auto")]
    taken: tuple[list[float], list[float]] = ([], [])
    for at in range(pairs + 200):
        for line, times in zip(lines, taken, strict=True):
            first_s, total_s = line.ask(stream)
            if at >= 200:
                times.append(1000.0 * (first_s if stream else total_s))
    added = [gateway - upstream for upstream, gateway in zip(*taken, strict=True)]
    return {
        "upstream_p50_ms": statistics.median(taken[0]),
        "gateway_p50_ms": statistics.median(taken[1]),
        "added_p50_ms": statistics.median(added),
        "upstream_p99_ms": statistics.quantiles(taken[0], n=100)[98],
        "gateway_p99_ms": statistics.quantiles(taken[1], n=100)[98],
    }


async def _client(port: int, model: str, stream: bool, until: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data, done = request(model, stream), 0
    while time.perf_counter() < until:
        writer.write(data)
        received = b""
        while not complete(received):
            piece = await reader.read(65536)
            if not piece:
                raise SystemExit("the server closed the connection in the middle of an answer")
            received += piece
        done += 1
    writer.close()
    return done


def throughput(server: Server, port: int, model: str, stream: bool, seconds: float) -> dict[str, float]:
    """Requests per second of 32 connections that ask again at once, and per second of the server's CPU."""

    async def run() -> int:
        until = time.perf_counter() + seconds
        clients = (_client(port, model, stream, until) for _ in range(32))
        return sum(await asyncio.gather(*clients))

    asyncio.run(run())
    cpu_s, began = server.cpu_s(), time.perf_counter()
    done = asyncio.run(run())
    elapsed, cpu_s = time.perf_counter() - began, server.cpu_s() - cpu_s
    return {"requests_per_s": done / elapsed, "requests_per_cpu_s": done / cpu_s}


def serve_bare(port: int, upstream: str) -> None:
    """The gateway over one upstream with a director that only forwards; runs until it is stopped."""
    from loadwise.clock import SystemClock
    from loadwise.engines.openai_http import OpenAIEngine
    from loadwise.gateway.build import build_gateway
    from loadwise.gateway.server import Listener, Place, run, serve
    from loadwise.settings import Settings
    from loadwise.telemetry.prometheus import Telemetry
    from loadwise.testing.director_fakes import FakeControl, FakeDirector

    async def main() -> None:
        clock = SystemClock()
        engine = OpenAIEngine(upstream, replica_id="stub", clock=clock)
        await engine.start()
        director = FakeDirector({"stub": engine}, clock, keep=100)
        app = build_gateway(Settings(), director, FakeControl(clock), Telemetry(), clock)
        await serve([Listener(app, Place("127.0.0.1", port))])
        await engine.close()

    run(main())


def servers(stack: ExitStack, folder: Path, bare: bool) -> tuple[Server, Server, int, int]:
    """The stub and the gateway before it, ready, with their ports."""
    stub_port, port = free_port(), free_port()
    url = f"http://127.0.0.1:{stub_port}"
    command = [sys.executable, "-m", "loadwise.testing", "--port", str(stub_port)]
    stub = Server("stub", command, url, folder / "stub.log", {}, "/health", 30)
    command = [sys.executable, __file__, "--serve-bare", str(port), url]
    if not bare:
        program = [sys.executable, "-c", "from loadwise.cli import main; main()"]
        command = [*program, "serve", "--port", str(port), "--upstream", f"stub={url}"]
    env = {
        "LOADWISE_STATE_DIR": str(folder),
        "LOADWISE_LOG_LEVEL": "warning",
        # What is measured is how many requests pass; refusing some of them would look like speed.
        "LOADWISE_OPTIMIZATION__REFUSE_LATE": "false",
    }
    address = f"http://127.0.0.1:{port}"
    gateway = Server("gateway", command, address, folder / "gateway.log", env, "/health/readiness", 60)
    return stack.enter_context(stub), stack.enter_context(gateway), stub_port, port


def measure(pairs: int, seconds: float, bare: bool) -> list[dict[str, object]]:
    """One row for whole answers, one for streams."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stub, gateway, direct, through = servers(stack, Path(folder), bare)
        for stream in (False, True):
            rows.append(
                {
                    "answers": "streamed, first byte" if stream else "whole",
                    **added_latency(direct, through, pairs, stream),
                    "upstream": throughput(stub, direct, "stub", stream, seconds),
                    "gateway": throughput(gateway, through, "auto", stream, seconds),
                }
            )
    return rows


def table(rows: Sequence[dict[str, object]]) -> str:
    """The rows as text."""
    lines = [f"{'milliseconds':22}{'upstream':>10}{'gateway':>10}{'added p50':>11}{'p99 through':>13}"]
    for row in rows:
        lines.append(
            f"{row['answers']:22}{row['upstream_p50_ms']:10.3f}{row['gateway_p50_ms']:10.3f}"
            f"{row['added_p50_ms']:11.3f}{row['gateway_p99_ms']:13.3f}"
        )
    lines.append(
        f"\n{'requests per second':22}{'upstream':>10}{'gateway':>10}{'of one core of the gateway':>28}"
    )
    for row in rows:
        upstream, gateway = row["upstream"], row["gateway"]
        lines.append(
            f"{row['answers']:22}{upstream['requests_per_s']:10.0f}{gateway['requests_per_s']:10.0f}"
            f"{gateway['requests_per_cpu_s']:28.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints a table, or JSON, and ends with 1 when the goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bare", action="store_true", help="without the optimizer")
    parser.add_argument("--out", type=Path, help="save the results with the machine that made them")
    parser.add_argument("--serve-bare", nargs=2, metavar=("PORT", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_bare:
        return serve_bare(int(options.serve_bare[0]), options.serve_bare[1])
    stop_servers_when_told()
    rows = measure(options.pairs, options.seconds, options.bare)
    met = all(float(str(row["added_p50_ms"])) <= GOAL_MS for row in rows)
    results = {"bare": options.bare, "goal_added_p50_ms": GOAL_MS, "met": met, "rows": rows}
    if options.out is not None:
        save(options.out, shlex.join(["python", "benchmarks/gateway.py", *sys.argv[1:]]), results)
    if options.json:
        print(json.dumps(results))
    else:
        print(table(rows))
        print(f"goal: at most {GOAL_MS:g} ms added at the median: {'met' if met else 'missed'}")
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
