"""`loadwise bench` from its command line: tables, JSON, files, and one-line refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loadwise.bench import runner as bench_runner
from loadwise.bench.command import bench_app
from loadwise.errors import ConfigurationError, EngineError, LoadwiseError

SHORT = ["--rate", "40", "--duration", "0.5", "--settle", "0"]


@pytest.fixture(autouse=True)
def no_demo_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub counts words, so words are what it is sent."""
    monkeypatch.setattr(bench_runner, "demo_tokenizer", lambda: None)


def invoke(stub: Any, *arguments: str) -> str:
    result = CliRunner().invoke(bench_app, ["--url", stub.url, *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_a_run_is_shown_as_a_table(stub: Any) -> None:
    shown = invoke(stub, *SHORT)
    assert "goodput" in shown
    assert "accurate 100 %" in shown
    assert "balanced 100 %" in shown


def test_json_is_all_that_json_prints(stub: Any) -> None:
    result = json.loads(invoke(stub, *SHORT, "--json", "--workload", "steps"))
    summary = result["summary"]
    assert summary["requests"] == summary["answered"] > 0
    assert summary["quality_served"] == 1.0
    assert summary["prompt_length_ratio"] == pytest.approx(1.0, abs=0.02)
    assert result["workload"]["source"] == "steps"
    assert result["objectives"] == {"time_to_first_token_s": 1.0, "time_per_output_token_s": 0.05}


def test_a_run_is_saved_with_its_samples_and_its_picture(stub: Any, tmp_path: Path) -> None:
    invoke(stub, *SHORT, "--out", str(tmp_path / "new"))
    saved = json.loads((tmp_path / "new" / "bench.json").read_text())
    rows = list(csv.DictReader((tmp_path / "new" / "requests.csv").read_text().splitlines()))
    assert len(rows) == saved["summary"]["requests"]
    assert rows[0]["member"] == "accurate"
    assert rows[0]["error"] == ""
    assert (tmp_path / "new" / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_failures_are_shown_by_their_reason(stub: Any) -> None:
    stub_models = invoke(stub, *SHORT, "--model", "auto")
    assert "none" in stub_models
    with pytest.raises(EngineError, match="cannot answer for 'refused': HTTP 429"):
        invoke(stub, *SHORT, "--model", "refused")


def test_a_comparison_runs_every_member_and_is_saved(stub: Any, tmp_path: Path) -> None:
    shown = invoke(stub, *SHORT, "--compare", "--offsets", "2", "--out", str(tmp_path))
    assert "auto against each member fixed, 2 runs each" in shown
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert set(saved["runs"]) == {"auto", "fast", "accurate"}
    assert [len(runs) for runs in saved["runs"].values()] == [2, 2, 2]
    assert saved["contrasts"][0]["quality_difference"]["mean"] == pytest.approx(0.3)
    assert (tmp_path / "compare.md").read_text().startswith("| model |")
    assert (tmp_path / "bench.png").is_file()


def test_a_comparison_needs_members(stub: Any) -> None:
    stub.qualities = None
    with pytest.raises(ConfigurationError, match="names no members; give --member"):
        invoke(stub, *SHORT, "--compare")
    shown = invoke(stub, *SHORT, "--compare", "--offsets", "1", "--member", "fast")
    assert "fast" in shown


def test_capacity_is_searched_and_shown(stub: Any, tmp_path: Path) -> None:
    # No server meets a first token in a microsecond: the search ends at its floor.
    shown = invoke(
        stub,
        "--rate",
        "2",
        "--duration",
        "0.5",
        "--find-capacity",
        "--ttft",
        "0.000001",
        "--out",
        str(tmp_path),
    )
    assert "auto sustains 0.00 requests/s" in shown
    assert json.loads((tmp_path / "bench.json").read_text())["sustained_per_s"] == 0.0


def test_keys_are_not_kept_in_the_command(stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*SHORT, "--api-key", "geheim", "--admin-key=secret", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["loadwise", "bench", *arguments])
    invoke(stub, *arguments)
    text = (tmp_path / "bench.json").read_text()
    assert "geheim" not in text
    assert "secret" not in text
    assert stub.headers[0]["authorization"] == "Bearer geheim"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "nope"], "none of poisson"),
        (["--rate", "0"], "--rate must be above 0, not 0"),
        (["--rate", "1", "--duration", "-1"], "--duration must be above 0"),
        (["--rate", "1", "--duration", "nan"], "--duration must be above 0, not nan"),
        (["--rate", "1", "--scale-lengths", "0"], "--scale-lengths must be above 0"),
        (["--workload", "poisson"], "needs --rate"),
        (["--rate", "1", "--model", "gpt"], "has no model 'gpt'. It serves: auto, fast"),
        (["--rate", "1", "--compare", "--find-capacity"], "Choose one"),
        (["--rate", "1", "--ttft", "-1"], "--ttft must be above 0, not -1"),
        (["--rate", "1", "--tpot", "nan"], "--tpot must be above 0, not nan"),
        (["--rate", "1", "--url", "ftp://x"], "must begin with http"),
        (["--rate", "1", "--url", "http://127.0.0.1:1"], "Is it running"),
        (["--rate", "1", "--tokenizer", "none.json"], "Cannot read the tokenizer"),
    ],
)
def test_wrong_options_are_refused_by_name(stub: Any, arguments: list[str], message: str) -> None:
    with pytest.raises(LoadwiseError, match=message):
        invoke(stub, *arguments)


@pytest.mark.parametrize("kind", [[], ["--compare"], ["--find-capacity"]])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_asked(
    stub: Any, tmp_path: Path, kind: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="Cannot write into"):
        invoke(stub, *SHORT, *kind, "--out", str(tmp_path / "file"))
    assert not stub.headers
