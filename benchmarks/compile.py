"""Every form of two models side by side, and the one that is chosen beside vLLM's CPU build.

    python benchmarks/compile.py [--vllm VENV] [--runs 5] [--budget 900s] [--out FILE.json]

The models are `accurate` and a Llama of 34 million parameters with random weights. `loadwise compile` makes,
judges and measures every form; then `loadwise serve` serves each model as it was chosen, and is measured over
HTTP in turns with vLLM on the same weights. VENV is what `tools/engines/vllm-cpu.sh VENV` made.

Before the first run ever, `loadwise compile fast --backend openvino` installs the exporter's environment
(minutes). No form is begun after the budget, for each model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine_throughput import BEST
from servers import shown

from loadwise.bench.report import machine
from loadwise.clock import SystemClock, iso_utc

HERE = Path(__file__).parent
# Of vLLM's tokens per second, at each concurrency.
PROMISED = 1.6
LAYERS, HIDDEN, INNER, HEADS, CONTEXT = 10, 512, 1408, 8, 1024


def random_llama(folder: Path) -> Path:
    """A Llama of 34 million parameters with random weights and the tokenizer of `accurate`."""
    import torch
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    from loadwise_models import family

    source = family()["accurate"]
    known = AutoConfig.from_pretrained(source)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=known.vocab_size,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        bos_token_id=known.bos_token_id,
        eos_token_id=known.eos_token_id,
        pad_token_id=known.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    return folder


def compiled(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What `loadwise compile` says of a model."""
    loadwise = str(Path(sys.executable).with_name("loadwise"))
    command = [loadwise, "compile", str(folder), "--json", "--runs", str(arguments.runs)]
    command += ["--budget", arguments.budget]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    # Where things lie on this machine says nothing elsewhere.
    for found in (result, *(row["package"] or {} for row in result["rows"])):
        found.pop("folder", None)
        found.pop("path", None)
    return {"command": shown(command), **result}


def beside_vllm(folder: Path, arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The chosen form, served, in turns with vLLM: see engine_throughput.py."""
    out = scratch / "beside-vllm.json"
    command = [sys.executable, str(HERE / "engine_throughput.py"), "--vllm", arguments.vllm]
    command += ["--model", str(folder), "--runs", str(arguments.runs), "--out", str(out)]
    command += ["--setting", *arguments.setting, "--rounds", "1"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The form that the optimizer chose by itself, against vLLM; variants apart, with what they lose."""
    chosen, beside = found["recommended"], found["beside_vllm"]
    ran = isinstance(beside, dict)
    ratios = {count: run["ratio"] for count, run in beside["results"].items()} if ran else {}
    return {
        "chosen": None if chosen is None else f"{chosen['backend']}/{chosen['mode']}",
        "times_vllm": ratios or beside,
        "at_least_1.6_times": all(ratio >= PROMISED for ratio in ratios.values()) if ratios else None,
        "variants": {
            f"{row['backend']}/{row['mode']}": {
                "tokens_per_s": row["tokens_per_s"],
                "quality": row["quality"],
                "loss_off": row["agreement"]["loss_off"],
            }
            for row in found["rows"]
            if row["quantised"] and row["run"]
        },
    }


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Every form of two models, and the chosen one beside vLLM.")
    parser.add_argument("--vllm", help="vLLM's environment; without it vLLM is not run")
    parser.add_argument(
        "--setting", nargs="+", default=BEST, help="vLLM's, as engine_throughput.py has them; the best counts"
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--budget", default="900s", help="of making forms, for each model")
    parser.add_argument("--models", nargs="+", default=["accurate", "llama-34m"])
    parser.add_argument("--out", type=Path, help="save the results as JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Runs, prints, saves."""
    from loadwise_models import family

    arguments, results, before = arguments_of(argv), {}, machine()
    command = shown(["python", "benchmarks/compile.py", *argv])
    with tempfile.TemporaryDirectory(prefix="bench-compile-") as made:
        scratch = Path(made)
        for name in arguments.models:
            folder = family().get(name) or random_llama(scratch / name)
            found = compiled(folder, arguments)
            results[name] = found
            try:
                found["beside_vllm"] = (
                    beside_vllm(folder, arguments, scratch) if arguments.vllm else "not run"
                )
            except subprocess.CalledProcessError as error:
                # Half an hour of other figures is not lost with it.
                found["beside_vllm"] = f"failed with status {error.returncode}"
            found["summary"] = summary(found)
            print(json.dumps({"model": name, **found["summary"]}, indent=1), flush=True)
            save(arguments.out, {"command": command, "machine": before, "models": results})


def save(out: Path | None, found: dict[str, Any]) -> None:
    """After every model: what was measured is kept, whatever becomes of the next."""
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    document = {"kind": "compile", "finished": iso_utc(SystemClock().wall_s()), **found}
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
