"""`make demo`, or `python -m loadwise.demo --minutes 5`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Any

from loadwise.app.logs import configure_logs
from loadwise.bench.client import Client, Planned, Target
from loadwise.demo.day import EVENTS, hour_of, seconds, traffic
from loadwise.demo.site import Site, opened
from loadwise.errors import LoadwiseError
from loadwise.simulation.workloads import Arrival

MEAN_RATE_PER_S = 9.0


def main(arguments: list[str] | None = None) -> None:
    """A day has passed, the report is written, and its place is said."""
    options = _parser().parse_args(arguments)
    configure_logs("error")
    try:
        asyncio.run(_demonstrate(options))
    except LoadwiseError as error:
        sys.exit(f"loadwise demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loadwise.demo", description=__doc__)
    parser.add_argument("--minutes", type=_positive, default=5.0, help="how long the day takes")
    parser.add_argument("--rate", type=_positive, default=MEAN_RATE_PER_S, help="mean requests per second")
    parser.add_argument("--port", type=int, default=2240, help="0 for any free one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of the report; a temporary one by default")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    parser.add_argument("--leave", action="store_true", help="leave the server up until interrupted")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def _demonstrate(options: argparse.Namespace) -> None:
    folder = options.out or Path(tempfile.mkdtemp(prefix="loadwise-demo-"))
    duration_s = options.minutes * 60.0
    async with opened(folder, options.port) as site:
        _say(f"Watch it at {site.url}/dashboard")
        _say(f"A day passes in {options.minutes:g} minutes: {options.rate:g} requests a second on average.")
        if not site.builds:
            _say("torch is not installed, so no build is made and none fails.")
        if not options.no_browser and _has_display():
            webbrowser.open(f"{site.url}/dashboard")
        await _day(site, options.rate, duration_s, options.seed)
        await _finish(site)
        if options.leave:
            _say("The server stays up; end it with Ctrl+C.")
            await asyncio.Event().wait()


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )


async def _day(site: Site, rate: float, duration_s: float, seed: int) -> None:
    """Traffic and events of one day, at the same time."""
    requests = [_asked(number, arrival) for number, arrival in enumerate(traffic(rate, duration_s, seed))]
    events = asyncio.create_task(_events(site, duration_s))
    try:
        async with Client(Target(site.url, chat=True)) as client:
            samples = await client.replay("auto", requests)
        await events
    finally:
        events.cancel()
    failed = sum(not sample.answered for sample in samples)
    _say(f"{len(samples)} requests were sent, {failed} got no whole answer.")


def _asked(number: int, arrival: Arrival) -> Planned:
    """A chat of the arrival's lengths, streamed."""
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": f"{number} " + "word " * arrival.input_tokens}],
        "max_tokens": arrival.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return Planned(
        t_s=arrival.t_s,
        body=json.dumps(body).encode(),
        input_tokens=arrival.input_tokens,
        output_tokens=arrival.output_tokens,
    )


async def _events(site: Site, duration_s: float) -> None:
    passed_s = 0.0
    for event in EVENTS:
        at_s = seconds(event.hour, duration_s)
        await asyncio.sleep(at_s - passed_s)
        passed_s = at_s
        _say(f"{hour_of(at_s, duration_s)}  {event.story}")
        await site.happen(event)


async def _finish(site: Site) -> None:
    """The report is written, and its short form is said."""
    async with Client(Target(site.url)) as client:
        report: dict[str, Any] = await client.get("/v1/optimization/report?export_file=true")
    share = report["within_objectives_fraction"]
    within = "unknown" if share is None else f"{share:.1%}"
    _say(f"The day is over: {report['total_requests']} requests, {within} within objectives.")
    path = Path(report["exported_to"])
    _say(f"Report: {path.with_suffix('.html')} (and .md, .json)")


if __name__ == "__main__":
    main()
