"""How engine versions name what their statistics say: one table, the newest name first.

`SchedulerStats` and `IterationStats` are no stable interfaces of the engines. A name that is missing
leaves its figure absent; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

# Figures of the moment, in the scheduler's record: several names of one tuple are added up.
GAUGES: Final[Mapping[str, Sequence[tuple[str, ...]]]] = {
    "running_requests": (("num_running_reqs",),),
    # The engines show both kinds of waiting as one in their own metrics.
    "waiting_requests": (("num_waiting_reqs", "num_skipped_waiting_reqs"), ("num_waiting_reqs",)),
    "kv_cache_usage_fraction": (("kv_cache_usage",), ("gpu_cache_usage",)),
}
# Counts of one iteration.
COUNTS: Final[Mapping[str, Sequence[tuple[str, ...]]]] = {
    "prompt_tokens": (("num_prompt_tokens",),),
    "output_tokens": (("num_generation_tokens",),),
}
# Lists of durations of one iteration, in seconds.
DURATIONS: Final[Mapping[str, Sequence[str]]] = {
    "first_token": ("time_to_first_tokens_iter",),
    "per_token": ("inter_token_latencies_iter", "time_per_output_tokens_iter"),
}
# Versions that the suite has run with; any other works too, and is warned of.
SEEN_VERSIONS: Final[Mapping[str, tuple[str, ...]]] = {"vllm": ("0.32",), "aphrodite": ("0.24",)}


def number(record: Any, choices: Sequence[tuple[str, ...]]) -> float | None:
    """The sum of the first choice whose names are all there as numbers; None where there is none."""
    for names in choices:
        values = [getattr(record, name, None) for name in names]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return sum(float(value) for value in values if value is not None)
    return None


def durations(record: Any, choices: Sequence[str]) -> Sequence[float]:
    """The first list that is there; empty where there is none."""
    for name in choices:
        values = getattr(record, name, None)
        if isinstance(values, list | tuple):
            return values
    return ()


def seen(engine: str, version: str) -> bool:
    """Whether the suite has run with this version of an engine."""
    return any(version == known or version.startswith(f"{known}.") for known in SEEN_VERSIONS.get(engine, ()))
