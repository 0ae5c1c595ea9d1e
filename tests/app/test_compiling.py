"""`loadwise compile`: what is recommended, what is not and why, and what bad input gets."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

pytest.importorskip("torch")

from loadwise.app.compiling.candidates import Candidates
from loadwise.app.compiling.row import CONCURRENCIES, Row, recommended
from loadwise.app.compiling.session import Session, chosen
from loadwise.app.compiling.table import advice, table
from loadwise.cli.application import app, run
from loadwise.cli.compile import seconds
from loadwise.clock import SystemClock
from loadwise.compiler.store import PackageStore
from loadwise.errors import ConfigurationError
from loadwise.settings import load_settings
from loadwise.testing.folders import write_tokenizer
from loadwise.torch_engine.agreement import Agreement


def judged(**changes: Any) -> Agreement:
    figures: dict[str, Any] = {
        "positions": 1000, "clear": 900, "margin": 0.001, "same_top": 1.0,
        "loss": 2.0, "loss_of_original": 2.0, "finite": True,
    }  # fmt: skip
    return Agreement(**figures | changes)


def row(mode: str, speed: float, **changes: Any) -> Row:
    runs = {count: [speed * count, speed * count * 1.1] for count in CONCURRENCIES}
    options: dict[str, Any] = {"agreement": judged(), "runs": runs, "build_s": 1.0, "memory_bytes": 2**20}
    return Row(**{"backend": "b", "mode": mode, **options, **changes})


def test_fastest_unquantised_form_that_answers_as_the_model_is_recommended() -> None:
    rows = [
        row("eager", 1.0),
        row("fine", 2.0),
        row("wrong", 9.0, agreement=judged(same_top=0.99)),
        row("int8", 8.0, quantised=True),
        Row(backend="b", mode="absent", reason="not run: g++ is missing"),
    ]
    best = recommended(rows)
    assert best is not None
    assert best.mode == "fine"
    assert recommended(rows[2:]) is None


def test_speed_up_is_of_runs_in_turns_with_an_interval() -> None:
    found = row("fast", 2.0).speedup(row("eager", 1.0))
    assert found == pytest.approx((2.0, 2.0, 2.0))
    assert row("fast", 2.0).step_ms(8) == pytest.approx(1000 / 2.1)
    assert Row(backend="b", mode="absent").speedup(row("eager", 1.0)) is None


def shown(rows: list[Row], **changes: Any) -> str:
    """What people see of a result."""
    best = recommended(rows)
    result = {
        "model": "m",
        "folder": "/models/m",
        "runs": 2,
        "rows": [one.as_json(rows[0] if rows[0].runs else None) for one in rows],
        "recommended": None if best is None else {"backend": best.backend, "mode": best.mode},
    }
    console = Console(width=120, record=True)
    console.print(table(result))
    return console.export_text() + "\n".join(advice(result))


def test_variant_states_its_quality_and_how_it_is_served() -> None:
    variant = row("int8", 2.0, quantised=True, agreement=judged(loss=2.1), backend="openvino")
    assert variant.as_json(row("eager", 1.0))["quality"] == pytest.approx(0.9048, abs=1e-4)
    said = shown([row("eager", 1.0), variant])
    assert "openvino/int8 *" in said
    assert "openvino/int8 keeps 90.48% of the model's quality at 2.00 times the speed of b/eager." in said
    assert "models: {m-int8: {path: /models/m, form: openvino/int8}}" in said


def test_form_that_was_not_run_says_why() -> None:
    said = shown([row("eager", 1.0), Row(backend="b", mode="absent", reason="not run: g++ is missing")])
    assert "b/absent: not run: g++ is missing" in said
    assert "Recommended: b/eager" in said
    assert "Packages" not in said


def test_table_has_the_step_at_every_concurrency_and_names_the_packages(tmp_path: Path) -> None:
    (tmp_path / "code.pt2").write_bytes(b"0" * 2**20)
    said = shown([row("eager", 1.0), row("default", 2.0, package=tmp_path)])
    # Twice 1.05 tokens/s for each of the requests.
    assert said.count("476") >= 3
    assert f"b/default: {tmp_path} (1.0 MiB)" in said


def test_package_that_its_store_let_go_of_meanwhile_is_none(tmp_path: Path) -> None:
    assert row("default", 2.0, package=tmp_path / "gone").as_json(None)["package"] is None


def test_of_packages_for_several_devices_that_of_this_run_is_named(llama: Path, tmp_path: Path) -> None:
    store = PackageStore(tmp_path / "builds")
    (tmp_path / "made").mkdir()
    for age, name in enumerate(("cuda", "cpu", "other")):
        facts = {"name": name, "parameters": "p", "mode": "default" if name != "other" else "max-autotune"}
        assert store.put(name, tmp_path / "made", facts)
        os.utime(store.root / name, (age, age))
    candidates = Candidates(llama, load_settings(cache_dir=tmp_path), SystemClock(), lambda _: None)
    compiler: Any = SimpleNamespace(get_compiled_model=lambda _: SimpleNamespace(digest=lambda: "p"))
    assert candidates._package(compiler, "m", "default") == store.root / "cpu"
    with store.find("cuda"):
        assert candidates._package(compiler, "m", "default") == store.root / "cuda"


def test_nothing_measured_is_said_plainly() -> None:
    assert "Nothing could be measured." in shown([Row(backend="b", mode="eager", reason="no budget")])


@pytest.mark.parametrize(("text", "value"), [("90", 90.0), ("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0)])
def test_budget_is_read_as_people_write_it(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "soon", "-5m", "0s", "10 minutes"])
def test_budget_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--budget takes a time"):
        seconds(text)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    return write_tokenizer(tmp_path / "llama")


async def test_budget_that_is_used_up_begins_nothing_and_says_so(llama: Path, tmp_path: Path) -> None:
    session = Session(llama, load_settings(cache_dir=tmp_path), SystemClock(), lambda _: None, -1.0)
    result = await session.run(["inductor"], runs=1)
    assert {found["reason"] for found in result["rows"]} == {
        "not run: the budget was used up; raise --budget"
    }
    assert result["recommended"] is None


@pytest.mark.slow
async def test_eager_form_is_measured_and_backends_that_cannot_decode_say_why(
    llama: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    session = Session(llama, load_settings(cache_dir=tmp_path), SystemClock(), said.append, 600.0)
    result = await session.run(["tensorrt", "onnxruntime"], runs=1)
    eager, *others = result["rows"]
    assert eager["agreement"]["same_top"] == 1.0
    assert set(eager["tokens_per_s"]) == {"1", "8", "32"}
    assert result["recommended"] == {"backend": "torch", "mode": "eager"}
    assert all(found["reason"].startswith("not run: ") for found in others)
    assert said[0].startswith("Making torch/eager (1 of 4; ")
    assert {found["package"] for found in result["rows"]} == {None}
    json.dumps(result)


def test_prompts_that_cannot_be_read_are_refused_before_anything_is_made(llama: Path, tmp_path: Path) -> None:
    settings = load_settings(cache_dir=tmp_path, build_prompts=tmp_path / "none.txt")
    with pytest.raises(ConfigurationError, match="Cannot read prompts"):
        Session(llama, settings, SystemClock(), lambda _: None, 600.0)


async def test_without_the_gpu_that_is_named_every_form_says_so(llama: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    settings = load_settings(cache_dir=tmp_path)
    session = Session(llama, settings, SystemClock(), lambda _: None, 600.0, "cuda")
    result = await session.run(["inductor", "openvino", "torchao"], runs=1)
    reasons = {f"{found['backend']}/{found['mode']}": found["reason"] for found in result["rows"]}
    assert "torch sees no CUDA device" in reasons["torch/eager"]
    assert "torch sees no CUDA device" in reasons["inductor/default"]
    assert reasons["openvino/fp16"] == "not run: OpenVINO serves on the processor"
    assert reasons["torchao/int8"] == "not run: small weights are judged on the processor only"
    assert result["recommended"] is None


def test_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="Unknown backend 'fastest'"):
        chosen([], ["fastest"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name a model folder"),
        (["nowhere"], "is no folder"),
        (["--export", "packages.tar"], "need --key"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("LOADWISE_CACHE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code = run(lambda: app(["compile", *arguments], standalone_mode=False))
    assert code == 2
    assert said in capsys.readouterr().err


def test_packages_are_exported_and_imported_by_the_command(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "code").write_text("code")
    assert PackageStore(tmp_path / "here" / "builds").put("a", tmp_path / "package", {"name": "a"})
    (tmp_path / "key").write_text("sixteen bytes or more")
    archive, key = str(tmp_path / "packages.tar"), str(tmp_path / "key")
    for place, option in (("here", "--export"), ("there", "--import")):
        done = CliRunner().invoke(
            app,
            ["compile", option, archive, "--key", key, "--json"],
            env={"LOADWISE_CACHE_DIR": str(tmp_path / place)},
        )
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)[option.strip("-") + "ed"] == ["a"]
    assert list(PackageStore(tmp_path / "there" / "builds").entries()) == ["a"]
