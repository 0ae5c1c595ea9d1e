"""Recorded workloads: reads the public trace formats as published, and fits them to a machine.

| format | known by | columns |
|---|---|---|
| plain | header | `t_s,input_tokens,output_tokens` |
| Azure LLM inference | header | `TIMESTAMP,ContextTokens,GeneratedTokens` |
| BurstGPT | header | `Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type` |
| Mooncake | JSON lines | `timestamp` (ms), `input_length`, `output_length`, `hash_ids` |

Each may be compressed (`.gz`). Further columns are ignored.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, TextIO

from loadwise.errors import ConfigurationError, LoadwiseError
from loadwise.simulation.workloads import Arrival


class TraceError(LoadwiseError, ValueError):
    """A trace file cannot be read: the message names file, line and what was expected."""


# --- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Columns:
    """How a CSV format names and writes its three values."""

    time: str
    input: str
    output: str
    seconds: Callable[[str], float] = float
    # Times are dates: the first request becomes second 0.
    dated: bool = False


def _azure_seconds(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


CSV_FORMATS: Mapping[str, _Columns] = {
    "plain": _Columns("t_s", "input_tokens", "output_tokens"),
    "azure": _Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens", _azure_seconds, dated=True),
    "burstgpt": _Columns("Timestamp", "Request tokens", "Response tokens"),
}


def load(path: Path) -> list[Arrival]:
    """The arrivals of a trace file in order of time; `TraceError` naming file and line.

    Dates become seconds since the first request; times that are seconds already stay as they are.
    Requests that got no answer (0 output tokens, failures in BurstGPT) are left out.
    """
    try:
        with _open(path) as lines:
            arrivals = list(_read(path, lines))
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise TraceError(f"Cannot read {path}: {reason}.") from None
    except UnicodeDecodeError as error:
        raise TraceError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}.") from None
    if not arrivals:
        raise TraceError(f"{path} holds no requests.")
    return sorted(arrivals, key=lambda arrival: arrival.t_s)


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read(path: Path, lines: TextIO) -> Iterator[Arrival]:
    name = path.name.removesuffix(".gz")
    return _read_jsonl(path, lines) if name.endswith((".jsonl", ".json")) else _read_csv(path, lines)


def _read_csv(path: Path, lines: TextIO) -> Iterator[Arrival]:
    reader = csv.DictReader(lines)
    try:
        columns = _columns(path, reader.fieldnames or [])
        rows = [_csv_arrival(path, reader.line_num, row, columns) for row in reader]
    except csv.Error as error:
        raise TraceError(f"{path}, line {reader.reader.line_num}: {error}.") from None
    start_s = min((row.t_s for row in rows), default=0.0) if columns.dated else 0.0
    for row in rows:
        if row.output_tokens > 0:
            yield Arrival(row.t_s - start_s, row.input_tokens, row.output_tokens)


def _columns(path: Path, header: Sequence[str]) -> _Columns:
    for columns in CSV_FORMATS.values():
        if {columns.time, columns.input, columns.output} <= set(header):
            return columns
    known = "; ".join(f"{c.time},{c.input},{c.output}" for c in CSV_FORMATS.values())
    raise TraceError(
        f"{path}, line 1: unknown columns {','.join(header) or '(none)'!s:.200}. Known: {known}."
    )


def _csv_arrival(path: Path, line: int, row: Mapping[str, str | None], columns: _Columns) -> Arrival:
    return Arrival(
        _number(path, line, columns.time, row[columns.time], columns.seconds),
        int(_number(path, line, columns.input, row[columns.input], int)),
        int(_number(path, line, columns.output, row[columns.output], int)),
    )


def _number(path: Path, line: int, name: str, text: Any, parse: Callable[[str], float]) -> float:
    shown = "" if text is None else str(text)
    try:
        value = parse(shown)
    except (ValueError, OverflowError):
        value = math.nan
    # Too many tokens would not fit any context, and would hang a generator of prompts.
    if not 0.0 <= value < 1e12:
        raise TraceError(f"{path}, line {line}: {name} must be a number of at least 0, not {shown[:80]!r}.")
    return value


def _read_jsonl(path: Path, lines: TextIO) -> Iterator[Arrival]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _json_object(path, number, line)
        milliseconds = _number(path, number, "timestamp", row.get("timestamp"), float)
        arrival = Arrival(
            milliseconds / 1000.0,
            int(_number(path, number, "input_length", row.get("input_length"), int)),
            int(_number(path, number, "output_length", row.get("output_length"), int)),
        )
        if arrival.output_tokens > 0:
            yield arrival


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}, line {number}: no valid JSON ({error}).") from None
    if not isinstance(row, dict):
        raise TraceError(f"{path}, line {number}: expected an object, not {type(row).__name__}.")
    return row


# --- fitting to a machine --------------------------------------------------------------------------


def window(arrivals: Iterable[Arrival], offset_s: float, duration_s: float) -> list[Arrival]:
    """The arrivals in `offset_s <= t_s < offset_s + duration_s`, counted from the offset."""
    end_s = offset_s + duration_s
    return [
        Arrival(a.t_s - offset_s, a.input_tokens, a.output_tokens)
        for a in arrivals
        if offset_s <= a.t_s < end_s
    ]


def thin(arrivals: Iterable[Arrival], keep_fraction: float, seed: int) -> list[Arrival]:
    """Each arrival kept with probability `keep_fraction` (0..1): bursts stay bursts."""
    if not 0.0 <= keep_fraction <= 1.0:
        raise ConfigurationError(
            f"keep_fraction must be in 0..1, not {keep_fraction:g}", field="keep_fraction"
        )
    chance = Random(seed)
    return [arrival for arrival in arrivals if chance.random() < keep_fraction]


def to_rate(arrivals: Sequence[Arrival], rate_per_s: float, duration_s: float, seed: int) -> list[Arrival]:
    """The arrivals of `duration_s` seconds thinned, or merged, to a mean rate; time is never stretched.

    Above the trace's own rate, whole copies are laid over it, each turned in time by a random shift
    (merging evens bursts out a little), and one more copy is thinned to the rest.
    """
    if not 0.0 < rate_per_s < math.inf:
        raise ConfigurationError(
            f"rate must be above 0 requests per second, not {rate_per_s:g}", field="rate"
        )
    if not arrivals:
        return []
    chance = Random(seed)
    factor = rate_per_s * duration_s / len(arrivals)
    merged: list[Arrival] = []
    for copy in range(math.ceil(factor)):
        turned = (
            list(arrivals) if copy == 0 else _turned(arrivals, chance.uniform(0.0, duration_s), duration_s)
        )
        merged.extend(thin(turned, min(1.0, factor - copy), chance.getrandbits(32)))
    return sorted(merged, key=lambda arrival: arrival.t_s)


def _turned(arrivals: Iterable[Arrival], shift_s: float, duration_s: float) -> list[Arrival]:
    return [Arrival((a.t_s + shift_s) % duration_s, a.input_tokens, a.output_tokens) for a in arrivals]


@dataclass(frozen=True, slots=True)
class Fitted:
    """Arrivals whose prompt and answer fit a context together; `cut` of them were too long for it."""

    arrivals: list[Arrival]
    cut: int


def fit_lengths(arrivals: Iterable[Arrival], divisor: float, context_tokens: int) -> Fitted:
    """Lengths divided by `divisor` and rounded, at least 1; what is still too long is cut to the context."""
    if not 0.0 < divisor < math.inf:
        raise ConfigurationError(
            f"lengths can be divided by a number above 0, not {divisor:g}", field="divisor"
        )
    if context_tokens < 2:
        raise ConfigurationError(
            f"context must be at least 2 tokens, not {context_tokens}", field="context_tokens"
        )
    fitted: list[Arrival] = []
    cut = 0
    for arrival in arrivals:
        output = min(max(1, round(arrival.output_tokens / divisor)), context_tokens - 1)
        wanted = max(1, round(arrival.input_tokens / divisor))
        prompt = min(wanted, context_tokens - output)
        cut += prompt < wanted or output < round(arrival.output_tokens / divisor)
        fitted.append(Arrival(arrival.t_s, prompt, output))
    return Fitted(fitted, cut)
