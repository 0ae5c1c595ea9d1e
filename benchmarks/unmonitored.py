"""`loadwise serve` without its monitoring, or with all of it: what monitoring_overhead.py compares.

    python benchmarks/unmonitored.py --port 8000 --state-dir /tmp/state           # all of it
    python benchmarks/unmonitored.py --port 8000 --state-dir /tmp/state --silent  # none of it

Silent means: no counters, histograms, timeline, history or objective counts, no alert rules, no journal.
What serving decides by stays: beliefs, the window of recent answers, the load and the experiments.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from loadwise.app.logs import configure_logs
from loadwise.app.server import composed, settle
from loadwise.gateway.server import run, serve
from loadwise.settings import load_settings


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
    configure_logs("warning")
    run(serve_until_told(parser.parse_args()))


if __name__ == "__main__":
    main()
