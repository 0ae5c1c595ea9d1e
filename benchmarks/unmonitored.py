"""`loadwise serve` without its monitoring, or with all of it: what monitoring_overhead.py compares.

    python benchmarks/unmonitored.py --port 8000 --state-dir /tmp/state           # all of it
    python benchmarks/unmonitored.py --port 8000 --state-dir /tmp/state --silent  # none of it

Silent means: no counters, histograms, timeline, history or objective counts, no alert rules, no journal.
What serving decides by stays: beliefs, the window of recent answers, the load and the experiments.
"""

from __future__ import annotations

import argparse
import mmap
import struct
from pathlib import Path
from typing import Any

from loadwise.app.logs import configure_logs
from loadwise.app.server import composed, settle
from loadwise.engines.openvino.engine import OpenVinoEngine
from loadwise.gateway.server import run, serve
from loadwise.settings import load_settings


def count_steps(path: Path) -> None:
    """The steps of all engines are counted in that file of eight bytes, for who measures to read."""
    path.write_bytes(bytes(8))
    with path.open("r+b") as file:
        counter = mmap.mmap(file.fileno(), 8)
    step, counted = OpenVinoEngine._on_step, struct.Struct("<q")

    def counting(engine: OpenVinoEngine, news: Any) -> None:
        counted.pack_into(counter, 0, counted.unpack_from(counter)[0] + 1)
        step(engine, news)

    OpenVinoEngine._on_step = counting  # type: ignore[method-assign]


def nothing(*_: Any, **__: Any) -> None:
    """Hears and keeps nothing."""


def silence(optimizer: Any) -> None:
    """Every part that only watches hears nothing from now on."""
    recorder = optimizer.recorder
    for part, names in (
        (recorder.telemetry, ("count", "observe", "decided", "refused", "ended")),
        (recorder, ("note",)),
    ):
        for name in names:
            setattr(part, name, nothing)
    optimizer.cycle.on_probed.clear()


async def serve_until_told(options: argparse.Namespace) -> None:
    """Serves the shipped models until SIGTERM."""
    watched = not options.silent
    settings = load_settings(
        port=options.port,
        state_dir=options.state_dir,
        journal={"enabled": watched},
        # One member answers `auto`, so that both servers do the same work.
        optimization={
            "enable_performance_tracking": watched,
            "enable_torch_compile": False,
            "allow_degrade": False,
            # A busy machine is slow for both: nobody is refused for it.
            "refuse_late": False,
        },
    )
    async with composed(settings) as server:
        optimizer = server.optimization.optimizer
        if options.silent:
            silence(optimizer)
            await optimizer.watch.stop()
        await optimizer.start_optimization()
        settle()
        await serve(server.listeners)


def main() -> None:
    """Reads the options and serves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--silent", action="store_true")
    parser.add_argument("--steps", type=Path, help="count the engines' steps in this file")
    options = parser.parse_args()
    configure_logs("warning")
    if options.steps is not None:
        count_steps(options.steps)
    run(serve_until_told(options))


if __name__ == "__main__":
    main()
