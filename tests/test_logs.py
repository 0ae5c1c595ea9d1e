"""The library's logs: silent until asked for, structured when they are, and each tied to its request."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from loadwise.app.logs import configure_logs
from loadwise.errors import EngineError
from loadwise.logs import REQUEST_ID, get_logger, said_by
from loadwise.testing.logs import events


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )


def test_a_library_writes_nowhere_unless_it_is_told_to() -> None:
    code = (
        "from loadwise import ServerSideOptimizer\n"
        "made = ServerSideOptimizer(engine_client=object())\n"
        "made.cycle.failed('host', ValueError('broken'))\n"
    )
    ended = run(code)
    assert (ended.stdout, ended.stderr) == ("", "")


def test_an_application_that_configures_logging_reads_the_events() -> None:
    code = (
        "import logging; logging.basicConfig(level='INFO')\n"
        "from loadwise.logs import get_logger\n"
        "get_logger('loadwise.x').warning('member_out', member='fast')\n"
    )
    assert run(code).stderr == "WARNING:loadwise.x:member_out member='fast'\n"


def test_lines_of_a_request_carry_its_id(caplog: pytest.LogCaptureFixture) -> None:
    token = REQUEST_ID.set("req-7")
    try:
        get_logger("loadwise.x").warning("stream_broke")
    finally:
        REQUEST_ID.reset(token)
    get_logger("loadwise.x").warning("loop")
    first, second = events(caplog.records)
    assert first == {"event": "stream_broke", "request_id": "req-7", "level": "warning"}
    assert "request_id" not in second


def test_a_servers_lines_are_json_whose_traces_repeat_no_foreign_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, prompt = logging.getLogger(), "".join(["sec", "ret"])
    before, level = list(root.handlers), root.level
    try:
        configure_logs("info")
        try:
            raise KeyError(prompt)
        except KeyError:
            get_logger("loadwise.x").exception("unexpected_error", member="fast")
        get_logger("loadwise.x").debug("below_the_level")
        logging.getLogger("other").warning("plain %s", "text")
    finally:
        root.handlers[:], root.level = before, level
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (first["event"], first["member"], first["level"]) == ("unexpected_error", "fast", "error")
    assert first["exception"].endswith("KeyError")
    assert prompt not in first["exception"]
    assert (second["event"], second["logger"]) == ("plain text", "other")


def test_only_errors_of_engines_are_quoted() -> None:
    assert said_by(EngineError("it is down")) == "EngineError: it is down"
    assert said_by(ValueError("a prompt")) == "ValueError"
