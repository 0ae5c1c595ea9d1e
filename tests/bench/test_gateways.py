"""The comparison with other gateways runs without them and says so; its table is the documentation's."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("gateways", "gateways_table", "gateway", "many_connections", "static_upstream", "servers", "saving")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


def test_loadwise_is_measured_and_absent_gateways_are_named(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    (tmp_path / "litellm.failed").write_text("No matching distribution found.\n")
    results = scripts["gateways"].measure(tmp_path, rounds=5, turns=1, seconds=0.2)
    assert set(results["gateways"]) == {"upstream", "loadwise"}
    assert results["gateways"]["upstream"]["one"]["added_p50_ms"] == 0.0
    assert results["gateways"]["loadwise"]["many"]["requests_per_s"] > 0.0
    assert results["not_run"]["litellm"] == "not run: No matching distribution found."
    assert set(results["not_run"]) == {"litellm", "sglang-router", "vllm-router"}
    assert "| litellm | | not run: No matching distribution found. |" in scripts["gateways_table"].table(
        results
    )


def test_the_table_of_the_documentation_is_that_of_the_saved_results(scripts: dict[str, ModuleType]) -> None:
    names = scripts["gateways_table"]
    page = names.PAGE.read_text(encoding="utf-8")
    shown = page.partition(names.BEGIN)[2].partition(names.END)[0]
    saved = names.RESULTS.read_text(encoding="utf-8") if names.RESULTS.exists() else None
    assert shown == ("" if saved is None else names.table(json.loads(saved)))


def test_the_static_upstream_finds_the_end_of_every_request(scripts: dict[str, ModuleType]) -> None:
    upstream = scripts["static_upstream"]
    counted = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
    chunked = b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    for request in (counted, chunked, b"GET /v1/models HTTP/1.1\r\n\r\n"):
        assert upstream._end(request + b"POST") == len(request)
        assert all(upstream._end(request[:end]) is None for end in range(len(request)))
