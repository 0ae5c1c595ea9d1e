"""What a run's samples come to: goodput, throughput, percentiles, who answered and how well."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loadwise.bench.client import Sample
from loadwise.decision.facts import Objectives

Qualities = Mapping[str, float | None]
PERCENTS = (50, 90, 95, 99)


def within(sample: Sample, objectives: Objectives) -> bool:
    """True when the request was answered within both objectives; refused and failed ones were not."""
    if not sample.answered or sample.time_to_first_token_s is None:
        return False
    pace_s = sample.time_per_output_token_s
    return sample.time_to_first_token_s <= objectives.time_to_first_token_s and (
        pace_s is None or pace_s <= objectives.time_per_output_token_s
    )


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The percentile (0..100) by linear interpolation between order statistics; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100.0
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def percentiles(values: Iterable[float | None]) -> dict[str, float | None]:
    """p50 to p99 of the values that are there."""
    present = [value for value in values if value is not None]
    return {f"p{percent}": percentile(present, percent) for percent in PERCENTS}


def shares(names: Iterable[str | None]) -> dict[str, float]:
    """The fraction of each name, most frequent first; unknown ones are not counted."""
    counts = Counter(name for name in names if name is not None)
    return {name: count / counts.total() for name, count in counts.most_common()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run in figures; latencies in seconds from the scheduled send time, None without answers."""

    model: str
    # The workload's duration; goodput and offered rate are per second of it.
    duration_s: float
    requests: int
    answered: int
    within_objectives: int
    # error -> requests.
    failures: Mapping[str, int]
    offered_per_s: float
    goodput_per_s: float
    within_fraction: float
    # Completed output tokens per second until the last answer ended.
    output_tokens_per_s: float
    time_to_first_token_s: Mapping[str, float | None]
    time_per_output_token_s: Mapping[str, float | None]
    total_s: Mapping[str, float | None]
    # Mean quality of the member that answered; None where no quality is known.
    quality_served: float | None
    member_shares: Mapping[str, float]
    strategy_shares: Mapping[str, float]
    # Answers with fewer tokens than asked for: their length was not reproduced.
    short_answers: int
    # Prompt tokens as the server counted them over those that were wanted; None where it counts none.
    prompt_length_ratio: float | None
    # How late the client itself sent; above some ms, the client was the bottleneck.
    client_lag_p99_s: float | None

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return asdict(self)


def summarize(
    model: str, samples: Sequence[Sample], duration_s: float, objectives: Objectives, qualities: Qualities
) -> Summary:
    """A run's samples as figures."""
    answered = [sample for sample in samples if sample.answered]
    good = sum(within(sample, objectives) for sample in samples)
    ended_s = max([duration_s, *(s.scheduled_s + (s.total_s or 0.0) for s in answered)])
    return Summary(
        model=model,
        duration_s=duration_s,
        requests=len(samples),
        answered=len(answered),
        within_objectives=good,
        failures=dict(Counter(sample.error for sample in samples if sample.error is not None).most_common()),
        offered_per_s=len(samples) / duration_s,
        goodput_per_s=good / duration_s,
        within_fraction=good / len(samples) if samples else 0.0,
        output_tokens_per_s=sum(sample.completion_tokens or 0 for sample in answered) / ended_s,
        time_to_first_token_s=percentiles(sample.time_to_first_token_s for sample in answered),
        time_per_output_token_s=percentiles(sample.time_per_output_token_s for sample in answered),
        total_s=percentiles(sample.total_s for sample in answered),
        quality_served=quality_served(answered, qualities),
        member_shares=shares(sample.member for sample in answered),
        strategy_shares=shares(sample.strategy for sample in answered),
        short_answers=sum((sample.completion_tokens or 0) < sample.output_tokens for sample in answered),
        prompt_length_ratio=_prompt_length_ratio(answered),
        client_lag_p99_s=percentile([sample.lag_s for sample in samples], 99),
    )


def _prompt_length_ratio(answered: Iterable[Sample]) -> float | None:
    counted = [(s.prompt_tokens, s.input_tokens) for s in answered if s.prompt_tokens is not None]
    return sum(real for real, _ in counted) / sum(wanted for _, wanted in counted) if counted else None


def quality_served(answered: Iterable[Sample], qualities: Qualities) -> float | None:
    """Mean quality of the members that answered, None when it is unknown for any of them."""
    found = [qualities.get(sample.member or "") for sample in answered]
    known = [quality for quality in found if quality is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


def timeline(
    samples: Sequence[Sample], duration_s: float, objectives: Objectives, bins: int = 60
) -> list[dict[str, Any]]:
    """The run in at most `bins` equal parts of time, a second or longer each.

    Each has offered and good requests per second, and how many answers each member and strategy gave.
    """
    bins = max(1, min(bins, int(duration_s)))
    width_s = duration_s / bins
    parts: list[list[Sample]] = [[] for _ in range(bins)]
    for sample in samples:
        parts[min(int(sample.scheduled_s / width_s), bins - 1)].append(sample)
    return [
        {
            "t_s": number * width_s,
            "offered_per_s": len(part) / width_s,
            "goodput_per_s": sum(within(sample, objectives) for sample in part) / width_s,
            "members": dict(Counter(sample.member for sample in part if sample.answered and sample.member)),
            "strategies": dict(Counter(sample.strategy for sample in part if sample.strategy)),
        }
        for number, part in enumerate(parts)
    ]
