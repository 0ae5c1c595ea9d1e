"""Tokens per second of `balanced` as loadwise serves it, beside vLLM's CPU build with the same weights.

    python benchmarks/engine_throughput.py --vllm VENV [--model FOLDER] [--out FILE.json]
    python benchmarks/engine_throughput.py --vllm VENV --sweep      # which of vLLM's settings is best here

VENV is what `tools/engines/vllm-cpu.sh VENV` made. The servers are asked over HTTP, in a closed loop of
1, 8 and 32 concurrent requests of fixed length (`ignore_eos`), streaming unless `--no-stream` is given, with
prompts that no prefix cache has seen. Which of vLLM's data types is faster depends on the processor and on
the concurrency: a server runs for each of `--setting`, and loadwise is compared with the best of them at each
concurrency. Runs alternate between the servers after a warm-up; those not measured are suspended. Medians are
compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from closed_loop import Workload, tokens_per_s
from servers import Server, free_port, shown, stop_servers_when_told

from loadwise.bench.prompts import TextPrompts
from loadwise.bench.report import machine
from loadwise.clock import SystemClock, iso_utc

CONCURRENCIES = (1, 8, 32)
NAME = "balanced"


@dataclass(frozen=True)
class Setting:
    """How vLLM is started; `preload` names libraries that its documentation recommends."""

    name: str
    env: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    preload: bool = False


# All with 1 GiB of cache, without prefix caching (no prompt repeats), 32 sequences, compilation on.
ALL_CORES = f"0-{(os.cpu_count() or 1) - 1}"
SETTINGS = (
    Setting("defaults"),
    Setting("float32", arguments=("--dtype", "float32")),
    Setting("float32, all cores", {"VLLM_CPU_OMP_THREADS_BIND": ALL_CORES}, ("--dtype", "float32")),
    Setting("float32, preloads", {}, ("--dtype", "float32"), preload=True),
    Setting(
        "float32, all cores, preloads",
        {"VLLM_CPU_OMP_THREADS_BIND": ALL_CORES},
        ("--dtype", "float32"),
        preload=True,
    ),
    Setting(
        "bfloat16, all cores, preloads",
        {"VLLM_CPU_OMP_THREADS_BIND": ALL_CORES},
        ("--dtype", "bfloat16"),
        preload=True,
    ),
)


BEST = ("float32, preloads", "bfloat16, all cores, preloads")


# A closed loop waits for every answer: as vLLM, it refuses nothing for lateness, and it has the same cache.
CLOSED_LOOP = "optimization: {refuse_late: false}\nkv_cache_bytes: 1073741824\n"


def loadwise_server(arguments: argparse.Namespace, logs: Path) -> Server:
    """`loadwise serve` as a user starts it, with the given weights where a folder was named."""
    port = free_port()
    config = logs / "loadwise.yaml"
    config.write_text(CLOSED_LOOP, encoding="utf-8")
    command = [str(Path(sys.executable).with_name("loadwise")), "serve", "--port", str(port)]
    command += ["--config", str(config)]
    if arguments.serve_only_model:
        command += ["--model", f"{NAME}={arguments.model}"]
    return Server(
        "loadwise", command, f"http://127.0.0.1:{port}", logs / "loadwise.log", {}, "/health/readiness"
    )


def vllm_server(arguments: argparse.Namespace, setting: Setting, logs: Path) -> Server:
    """vLLM with one of the settings above."""
    port = free_port()
    venv = Path(arguments.vllm)
    command = [str(venv / "bin/vllm"), "serve", str(arguments.model), "--served-model-name", NAME]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024", "--max-num-seqs", "32"]
    command += ["--no-enable-prefix-caching", *setting.arguments]
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", **setting.env}
    if setting.preload:
        env["LD_PRELOAD"] = ":".join(str(library) for library in preloads(venv))
    log = logs / f"vllm-{setting.name.replace(' ', '-').replace(',', '')}.log"
    return Server(f"vllm ({setting.name})", command, f"http://127.0.0.1:{port}", log, env, "/health")


def preloads(venv: Path) -> list[Path]:
    """Intel's OpenMP from the environment, and TCMalloc from the system or beside the environment."""
    places = [venv / "lib", Path("/usr/lib/x86_64-linux-gnu")]
    names = ("libiomp5.so", "libtcmalloc_minimal.so.4")
    found = [next((place / name for place in places if (place / name).exists()), None) for name in names]
    missing = [name for name, path in zip(names, found, strict=True) if path is None]
    if missing:
        raise SystemExit(
            f"vLLM's best settings preload {', '.join(missing)}: apt-get install libtcmalloc-minimal4, "
            f"or put the library into {venv / 'lib'}."
        )
    return [path for path in found if path is not None]


def measure(server: Server, workload: Workload, concurrency: int, rounds: int) -> float:
    """Tokens per second of one run."""
    requests = workload.requests(max(8, concurrency * rounds) if concurrency > 1 else 8)
    return tokens_per_s(server.url, workload, requests, concurrency)


def sweep(arguments: argparse.Namespace, workload: Workload, logs: Path) -> dict[str, Any]:
    """Tokens per second of vLLM under every setting, all servers resident and measured in turn."""
    runs: dict[str, dict[str, list[float]]] = {s.name: {str(c): [] for c in CONCURRENCIES} for s in SETTINGS}
    with ExitStack() as stack:
        servers = {}
        for setting in SETTINGS:
            servers[setting.name] = server = stack.enter_context(vllm_server(arguments, setting, logs))
            for concurrency in CONCURRENCIES:
                measure(server, workload, concurrency, 1)
            server.pause()
        for _ in range(arguments.runs):
            for name, server in servers.items():
                server.resume()
                for concurrency in CONCURRENCIES:
                    runs[name][str(concurrency)].append(
                        measure(server, workload, concurrency, arguments.rounds)
                    )
                server.pause()
    medians = {name: {c: statistics.median(v) for c, v in runs[name].items()} for name in runs}
    for name, row in medians.items():
        print(f"{name}: {', '.join(f'{c}: {value:.0f}' for c, value in row.items())} tokens/s", flush=True)
    return {"vllm_tokens_per_s": runs, "medians": medians}


def head_to_head(arguments: argparse.Namespace, workload: Workload, logs: Path) -> dict[str, Any]:
    """loadwise, and vLLM under each of the settings asked for, in turn, run by run."""
    settings = [next(s for s in SETTINGS if s.name == name) for name in arguments.setting]
    idle = {}
    with ExitStack() as stack:
        servers = []
        for server in (
            loadwise_server(arguments, logs),
            *(vllm_server(arguments, s, logs) for s in settings),
        ):
            servers.append(stack.enter_context(server))
            # Every concurrency twice, to warm up.
            for concurrency in (*CONCURRENCIES, *CONCURRENCIES):
                measure(server, workload, concurrency, 1)
            idle[server.name] = round(server.idle_cores(), 4)
            server.pause()
        results = {str(c): interleaved(servers, workload, c, arguments) for c in CONCURRENCIES}
        commands = {server.name: shown(server.command) for server in servers}
    return {
        "idle_cores": idle,
        "settings": [setting.name for setting in settings],
        "vllm_env": {s.name: {n: shown(v.split(":")) for n, v in s.env.items()} for s in servers[1:]},
        "commands": commands,
    } | {"results": results}


def interleaved(
    servers: Sequence[Server], workload: Workload, concurrency: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Each server's runs at one concurrency, in turn, and loadwise's median against the best of the others'.

    All are suspended before and after.
    """
    runs: dict[str, list[float]] = {server.name: [] for server in servers}
    for run in range(arguments.runs):
        for server in servers if run % 2 == 0 else reversed(servers):
            server.resume()
            runs[server.name].append(measure(server, workload, concurrency, arguments.rounds))
            server.pause()
    medians = {name: statistics.median(values) for name, values in runs.items()}
    ours, *theirs = medians
    best = max(theirs, key=medians.__getitem__)
    ratio = medians[ours] / medians[best]
    shown_medians = ", ".join(f"{name} {median:.0f}" for name, median in medians.items())
    print(f"{concurrency:>3} concurrent: {shown_medians} tokens/s, ratio {ratio:.2f}", flush=True)
    return {"tokens_per_s": runs, "medians": medians, "best_of_vllm": best, "ratio": ratio}


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vllm", type=Path, required=True, help="virtual environment with vLLM")
    parser.add_argument(
        "--model", type=Path, help="folder of the weights; the demo family's `balanced` by default"
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--rounds", type=int, default=3, help="requests per caller and run (8 callers and more)"
    )
    parser.add_argument("--input", type=int, default=64)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument(
        "--setting",
        nargs="+",
        choices=[s.name for s in SETTINGS],
        default=BEST,
        help="of vLLM; the best counts",
    )
    parser.add_argument("--no-stream", action="store_true", help="ask for whole answers")
    parser.add_argument("--sweep", action="store_true", help="measure vLLM alone under every setting")
    parser.add_argument("--out", type=Path, help="save the results as JSON")
    arguments = parser.parse_args(argv)
    arguments.serve_only_model = arguments.model is not None
    if arguments.model is None:
        from loadwise_models import family

        arguments.model = family()[NAME]
    return arguments


def main(argv: Sequence[str]) -> None:
    """Runs, prints, saves."""
    arguments = arguments_of(argv)
    stop_servers_when_told()
    # Another start, another set of prompts.
    prompts = TextPrompts.from_path(arguments.model, seed=int(time.time()))
    workload = Workload(NAME, prompts, arguments.input, arguments.output, stream=not arguments.no_stream)
    logs = Path(tempfile.mkdtemp(prefix="engine-throughput-"))
    before = machine()
    results = (sweep if arguments.sweep else head_to_head)(arguments, workload, logs)
    document = {
        "kind": "vllm-sweep" if arguments.sweep else "engine-throughput",
        "command": shown(["python", "benchmarks/engine_throughput.py", *argv]),
        "finished": iso_utc(SystemClock().wall_s()),
        "machine": before,
        "input_tokens": arguments.input,
        "output_tokens": arguments.output,
        "stream": workload.stream,
        **results,
    }
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
