"""What loadwise adds in front, beside other gateways: latency and requests/s at 1 and 32 connections.

One static upstream, every gateway before it at the same time, asked in turn in the same run: at one
connection request by request, at 32 in slices. What a gateway adds is what its request took over the
upstream's own of the same round. A gateway that cannot be started is reported with the reason.

    python benchmarks/gateways.py --venvs .cache/gateways --out benchmarks/results/gateways.json --document
    python benchmarks/gateways.py --document        # only the table in docs/benchmarks.md, from the results
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateways_table import RESULTS, document, table
from many_connections import Slice, burst
from saving import save
from servers import Server, free_port, shown, stop_servers_when_told
from static_upstream import MODEL

from gateway import Connection

UPSTREAM = "upstream"
WARMING = 100


@dataclass
class Gateway:
    """A running server, the model that its clients name, and what was measured."""

    name: str
    port: int
    model: str
    version: str
    one_ms: list[float] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)


# --- the servers ----------------------------------------------------------------------------------


def _server(name: str, command: Sequence[str], port: int, folder: Path, ready: str, **env: str) -> Server:
    log = folder / f"{name}.log"
    return Server(name, command, f"http://127.0.0.1:{port}", log, env, ready, start_timeout_s=90.0)


def upstream(port: int, folder: Path) -> Server:
    """The static upstream."""
    script = Path(__file__).parent / "static_upstream.py"
    return _server(UPSTREAM, [sys.executable, str(script), str(port)], port, folder, "/health")


def loadwise(port: int, url: str, folder: Path) -> Server:
    """`loadwise serve` as its users start it, except that it refuses nothing."""
    program = [sys.executable, "-c", "from loadwise.cli import main; main()"]
    env = {
        "LOADWISE_STATE_DIR": str(folder),
        "LOADWISE_LOG_LEVEL": "warning",
        # What is measured is how many requests pass; refusing some of them would look like speed.
        "LOADWISE_OPTIMIZATION__REFUSE_LATE": "false",
    }
    command = [*program, "serve", "--port", str(port), "--upstream", f"{MODEL}={url}"]
    return _server("loadwise", command, port, folder, "/health/readiness", **env)


def litellm(venv: Path, port: int, url: str, folder: Path) -> Server:
    """LiteLLM's proxy with one deployment; it fetches no prices."""
    parameters = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"}
    config = folder / "litellm.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": parameters}]}))
    command = [str(venv / "bin/litellm"), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    env = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        # Without keys, as the others run.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        "PATH": _path(venv),
        "PYTHONPATH": "",
    }
    return _server("litellm", command, port, folder, "/health/liveliness", **env)


def sglang_router(venv: Path, port: int, url: str, folder: Path) -> Server:
    """SGLang's router before one worker."""
    command = [str(venv / "bin/python"), "-m", "sglang_router.launch_router", *_router_options(port, url)]
    return _server("sglang-router", command, port, folder, "/health", PYTHONPATH="")


def vllm_router(venv: Path, port: int, url: str, folder: Path) -> Server:
    """vLLM's router before one worker."""
    command = [str(venv / "bin/vllm-router"), *_router_options(port, url)]
    return _server("vllm-router", command, port, folder, "/health", PYTHONPATH="")


def _router_options(port: int, url: str) -> list[str]:
    options = ["--worker-urls", url, "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    # Each would serve its metrics on the same port otherwise.
    return [*options, "--prometheus-port", str(free_port())]


def _path(venv: Path) -> str:
    return f"{venv / 'bin'}:/usr/bin:/bin"


OTHERS = {"litellm": litellm, "sglang-router": sglang_router, "vllm-router": vllm_router}


def version_of(venv: Path, name: str) -> str:
    """The version of a package in an environment; SystemExit where it is not installed."""
    for folder in venv.glob(f"lib/python3*/site-packages/{name.replace('-', '_')}-*.dist-info"):
        return folder.name.removesuffix(".dist-info").rpartition("-")[2]
    raise SystemExit("not built; see tools/gateways/build.sh")


@contextmanager
def running(venvs: Path, folder: Path) -> Iterator[tuple[list[Gateway], dict[str, str]]]:
    """The upstream, loadwise and every other gateway that starts; and why the others did not."""
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        first, port = free_port(), free_port()
        url = f"http://127.0.0.1:{first}"
        stack.enter_context(upstream(first, folder))
        stack.enter_context(loadwise(port, url, folder))
        found = [Gateway(UPSTREAM, first, MODEL, ""), Gateway("loadwise", port, "auto", "this checkout")]
        for name, make in OTHERS.items():
            venv, port = venvs / name, free_port()
            try:
                version = _built(venv, name)
                stack.enter_context(make(venv, port, url, folder))
                _checked(port)
            except SystemExit as error:
                missing[name] = f"not run: {error}"
            else:
                found.append(Gateway(name, port, MODEL, version))
        yield found, missing


def _built(venv: Path, name: str) -> str:
    reason = venv.with_suffix(".failed")
    if reason.exists():
        raise SystemExit(reason.read_text().strip())
    return version_of(venv, name)


def _checked(port: int) -> None:
    line = Connection(port, MODEL)
    with closing(line.socket):
        line.ask(stream=False)


# --- measuring ------------------------------------------------------------------------------------


def one_connection(gateways: Sequence[Gateway], rounds: int) -> None:
    """Every round asks every gateway once, in a new order."""
    with ExitStack() as stack:
        lines = {}
        for gateway in gateways:
            lines[gateway.name] = Connection(gateway.port, gateway.model)
            stack.enter_context(closing(lines[gateway.name].socket))
        _ask_in_turn(gateways, lines, rounds)


def _ask_in_turn(gateways: Sequence[Gateway], lines: Mapping[str, Connection], rounds: int) -> None:
    order = list(gateways)
    # A fixed seed: the same order in every run.
    draw = random.Random(1)
    for at in range(-WARMING, rounds):
        draw.shuffle(order)
        for gateway in order:
            _, total_s = lines[gateway.name].ask(stream=False)
            if at >= 0:
                gateway.one_ms.append(1000.0 * total_s)


def many_connections(gateways: Sequence[Gateway], turns: int, seconds: float) -> None:
    """Slices of 32 connections that ask again at once, one gateway after the other, in turning order."""
    for gateway in gateways:
        burst(gateway.port, gateway.model, 32, min(seconds, 1.0))
    for turn in range(turns):
        at = turn % len(gateways)
        for gateway in [*gateways[at:], *gateways[:at]]:
            gateway.slices.append(burst(gateway.port, gateway.model, 32, seconds))


def result(gateway: Gateway, bare: Gateway) -> dict[str, Any]:
    """One gateway's figures: milliseconds that it adds, and requests per second."""
    added = [mine - own for mine, own in zip(gateway.one_ms, bare.one_ms, strict=True)]
    pairs = list(zip(gateway.slices, bare.slices, strict=True))
    return {
        "version": gateway.version,
        "one": {
            "p50_ms": statistics.median(gateway.one_ms),
            "p99_ms": p99(gateway.one_ms),
            "added_p50_ms": statistics.median(added),
            "added_p99_ms": p99(added),
            "requests_per_s": 1000.0 / statistics.fmean(gateway.one_ms),
        },
        "many": {
            "p50_ms": statistics.median(part.p50_ms for part in gateway.slices),
            "p99_ms": statistics.median(part.p99_ms for part in gateway.slices),
            "added_p50_ms": statistics.median(mine.p50_ms - own.p50_ms for mine, own in pairs),
            "added_p99_ms": statistics.median(mine.p99_ms - own.p99_ms for mine, own in pairs),
            "requests_per_s": statistics.median(part.requests_per_s for part in gateway.slices),
        },
    }


def p99(values: Sequence[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(values, n=100)[98]


def measure(venvs: Path, rounds: int, turns: int, seconds: float) -> Mapping[str, Any]:
    """All gateways' figures by name, and the reasons of those that did not run."""
    with tempfile.TemporaryDirectory() as folder, running(venvs, Path(folder)) as (gateways, missing):
        one_connection(gateways, rounds)
        many_connections(gateways, turns, seconds)
    found = {gateway.name: result(gateway, gateways[0]) for gateway in gateways}
    return {"rounds": rounds, "turns": turns, "seconds": seconds, "gateways": found, "not_run": missing}


def main() -> None:
    """Measures, saves with `--out`, and writes the table into the documentation with `--document`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--venvs", type=Path, default=Path(".cache/gateways"))
    parser.add_argument("--rounds", type=int, default=3000, help="at one connection")
    parser.add_argument("--turns", type=int, default=8, help="slices of each gateway at 32 connections")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one slice")
    parser.add_argument("--out", type=Path, help="save the results with the machine that made them")
    parser.add_argument("--document", action="store_true", help="write the table into docs/benchmarks.md")
    options = parser.parse_args()
    if options.out is None and options.document:
        document(json.loads(RESULTS.read_text(encoding="utf-8")))
        return
    stop_servers_when_told()
    results = measure(options.venvs.resolve(), options.rounds, options.turns, options.seconds)
    if options.out is not None:
        save(options.out, shown(["python", "benchmarks/gateways.py", *sys.argv[1:]]), results)
    if options.document:
        document(results)
    print(table(results))


if __name__ == "__main__":
    main()
