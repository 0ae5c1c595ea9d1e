"""Where a server's logs go: JSON where nobody watches, plain lines in a terminal; no prompts, no keys."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

from loadwise.logs import FIELDS, said_by


def configure_logs(level: str, of: str = "") -> None:
    """Every logger of the process, or those below `of`, write to standard error, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain() if sys.stderr.isatty() else _Json())
    root = logging.getLogger(of)
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _told(error: BaseException) -> str:
    """Where an error came from: frames without variables, which would show prompts, and what it says."""
    return "".join([*traceback.format_tb(error.__traceback__), said_by(error)])


class _Json(logging.Formatter):
    """One JSON object a line: time, level, logger, event and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, FIELDS, None) or {"event": record.getMessage()}
        line: dict[str, Any] = {
            "timestamp": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            **fields,
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = _told(record.exc_info[1])
        return json.dumps(line, default=str, ensure_ascii=False)


class _Plain(logging.Formatter):
    """A line for people."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname.lower():<8}{record.getMessage()}"
        error = record.exc_info[1] if record.exc_info else None
        return line if error is None else f"{line}\n{_told(error)}"
