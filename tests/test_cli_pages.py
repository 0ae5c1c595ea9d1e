"""`loadwise status` and `loadwise report` against a real server, as a user runs them."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from rich.console import Console

from loadwise.app.server import composed
from loadwise.cli.live import screen
from loadwise.settings import load_settings
from loadwise.testing import StubUpstream


@pytest.fixture
def serving(tmp_path: Path) -> Callable[..., object]:
    @asynccontextmanager
    async def made(**settings: object) -> AsyncIterator[tuple[str, object]]:
        stub = StubUpstream()
        await stub.start()
        folders = {"state_dir": tmp_path / "state", "cache_dir": tmp_path / "cache"}
        loaded = load_settings(port=0, upstreams={"eu": {"url": stub.url}}, **folders, **settings)
        async with composed(loaded) as server:
            listener = server.listeners[0]
            running = asyncio.create_task(listener.run())
            await server.optimization.optimizer.start_optimization()
            url = f"http://127.0.0.1:{listener.port}"
            try:
                yield url, server
            finally:
                listener.stop()
                await running
                await stub.close()

    return made


async def loadwise(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """The command in a process of its own: exit code, output, errors."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LOADWISE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from loadwise.cli import main; main()", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**clean, "COLUMNS": "160", **environment},
    )  # fmt: skip
    out, error = await process.communicate()
    return process.returncode or 0, out.decode(), error.decode()


async def ask(url: str, count: int = 5) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    async with aiohttp.ClientSession() as client:
        for _ in range(count):
            async with client.post(url + "/v1/chat/completions", json=body) as answer:
                await answer.read()


async def test_status_outside_a_terminal_is_the_verdict_as_text(serving):
    async with serving() as (url, _):
        await ask(url)
        code, out, _ = await loadwise("status", "--url", url)
    assert code == 0
    assert "Nothing is at fault" in out
    assert "Where time goes" in out


async def test_status_in_a_terminal_is_live_until_it_is_interrupted(serving):
    master, slave = pty.openpty()
    async with serving() as (url, _):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from loadwise.cli import main; main()", "status", "--url", url,
            stdin=slave, stdout=slave, stderr=slave,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
        )  # fmt: skip
        os.close(slave)
        shown = b""
        # The second frame overwrites the first in place.
        while shown.count(b"members, last five minutes") < 2:
            shown += await asyncio.to_thread(os.read, master, 65536)
        process.send_signal(signal.SIGINT)
        # What is still on its way is read, or the command could not write its last.
        reading = asyncio.create_task(asyncio.to_thread(_rest, master))
        assert await process.wait() == 0
        await reading
    os.close(master)
    assert b"eu" in shown
    assert b"Traceback" not in shown


def _rest(master: int) -> None:
    """Reads a terminal to its end, which the system reports as an error."""
    with suppress(OSError):
        while os.read(master, 65536):
            continue


async def test_status_as_json_is_the_whole_status(serving):
    async with serving() as (url, _):
        _, out, _ = await loadwise("status", "--url", url, "--json")
    assert json.loads(out)["running"] is True


async def test_status_takes_a_key_from_the_environment(serving):
    async with serving(api_key="data") as (url, _):
        refused, _, error = await loadwise("status", "--url", url)
        code, _, _ = await loadwise("status", "--url", url, LOADWISE_API_KEY="data")
    assert (refused, code) == (2, 0)
    assert "is the key right?" in error


@pytest.mark.parametrize(
    ("arguments", "begins"),
    [
        ([], "# Performance report"),
        (["--format", "html"], "<!doctype html>"),
        (["--format", "json"], "{"),
        (["--json"], "{"),
    ],
)
async def test_the_report_comes_in_each_format(serving, arguments, begins):
    async with serving() as (url, _):
        await ask(url)
        code, out, _ = await loadwise("report", "--url", url, *arguments)
    assert code == 0
    assert out.startswith(begins)
    assert "eu" in out


async def test_a_files_name_says_the_format(serving, tmp_path):
    async with serving() as (url, _):
        code, out, _ = await loadwise("report", "--url", url, "--out", str(tmp_path / "day.html"))
        missing = await loadwise("report", "--url", url, "--out", str(tmp_path / "none" / "day.html"))
    assert code == 0
    assert "Wrote" in out
    assert (tmp_path / "day.html").read_text().startswith("<!doctype html>")
    assert (missing[0], len(missing[2].splitlines())) == (2, 1)


async def test_an_exported_report_is_the_same_in_all_three_formats(serving, tmp_path):
    async with serving(report_dir=tmp_path / "reports") as (url, _):
        await ask(url)
        async with (
            aiohttp.ClientSession() as client,
            client.get(url + "/v1/optimization/report?export_file=true") as answer,
        ):
            report = await answer.json()
    names = sorted(path.suffix for path in (tmp_path / "reports").iterdir())
    assert names == [".html", ".json", ".md"]
    assert Path(report["exported_to"]).parent == tmp_path / "reports"


async def test_the_live_screen_shows_the_verdict_members_and_what_was_not_measured(serving):
    async with serving() as (url, server):
        frame = await server.optimization.control.read("live")
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(screen(frame, url))
    shown = console.export_text()
    for said in ("No request ended", "eu", "healthy", "–", "nothing yet"):
        assert said in shown
