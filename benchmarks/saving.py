"""Result files of the benchmarks: what was run, where, how busy the machine was, and what came out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loadwise.bench.report import machine
from loadwise.clock import SystemClock, iso_utc


def save(path: Path, command: str, results: Mapping[str, Any]) -> None:
    """The results are written as JSON, with the command that made them."""
    document = {
        "command": command,
        "finished": iso_utc(SystemClock().wall_s()),
        "loadwise": version("loadwise"),
        "machine": machine(),
        **results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
