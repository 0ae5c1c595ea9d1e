"""What metrics cost a request: python benchmarks/telemetry.py. Prints microseconds of thread time.

Everything that is counted of one streamed request: its decision with one changed parameter, its end with
tokens, times and objectives, and its HTTP answer.
"""

from __future__ import annotations

import json
import statistics
import time

from loadwise.decision.facts import Ending, Outcome, RequestFacts, StrategyName
from loadwise.ports import Dispatch
from loadwise.telemetry.objectives import ObjectiveCounts
from loadwise.telemetry.prometheus import Telemetry

ROUNDS, REQUESTS = 30, 2000
MEMBERS = ("fast", "balanced", "accurate")


def dispatch(member: str) -> Dispatch:
    """A decided request."""
    return Dispatch(
        request=RequestFacts(request_id="r"), member_id=member, replica_id=f"{member}/0", engine=None,  # type: ignore[arg-type]
        strategy=StrategyName.BALANCED, reason="weighted_voting", propensity=0.5, changes={"max_tokens": 512},
    )  # fmt: skip


def outcome(member: str) -> Outcome:
    """How it ended."""
    return Outcome(
        request_id="r", member_id=member, replica_id=f"{member}/0", ending=Ending.SUCCEEDED, finished_s=10.0,
        total_s=1.3, time_to_first_token_s=0.2, prompt_tokens=80, output_tokens=64,
    )  # fmt: skip


def one_round(telemetry: Telemetry, counts: ObjectiveCounts) -> float:
    """Microseconds per request."""
    decided = [dispatch(member) for member in MEMBERS]
    ended = [outcome(member) for member in MEMBERS]
    began = time.thread_time()
    for number in range(REQUESTS):
        place = number % len(MEMBERS)
        telemetry.decided(decided[place], 3e-5)
        telemetry.ended(ended[place], True)
        counts.note("auto", True, number * 0.01)
        telemetry.answered("/v1/chat/completions", 200)
    return 1e6 * (time.thread_time() - began) / REQUESTS


def main() -> None:
    """Prints the cost as JSON."""
    telemetry, counts = Telemetry(), ObjectiveCounts()
    times = sorted(one_round(telemetry, counts) for _ in range(ROUNDS))
    began = time.thread_time()
    size = len(telemetry.render()[0])
    print(
        json.dumps(
            {
                "request_us_median": round(statistics.median(times), 2),
                "request_us_highest": round(times[-1], 2),
                "scrape_ms": round(1e3 * (time.thread_time() - began), 2),
                "scrape_bytes": size,
            }
        )
    )


if __name__ == "__main__":
    main()
