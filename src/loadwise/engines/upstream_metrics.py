"""How other servers name what we read of them: one table, and the reader of their text format.

Where each name was seen:

| server | version | where |
|---|---|---|
| vLLM | 0.32.0 | a running server's `/metrics` (tests/engines/pages); `gpu_` names are older |
| Aphrodite Engine | 0.24.1 | a running server's `/metrics` (tests/engines/pages) |
| SGLang | 0.4 | its documentation, "Production Metrics": `time_per_output_token_seconds` |
| SGLang | 0.5 | its source, metrics_collector.py: `inter_token_latency_seconds` |
| llama.cpp | of 2024 | its server's README: `kv_cache_usage_ratio`, which later builds lack |
| llama.cpp | of 2026 | its server's README, "Available metrics"; nothing there says how full the cache is |
| text-generation-inference | 3.1 | its documentation, "Metrics", and `gauge!` in its backends |

SGLang answers `/metrics` only with `--enable-metrics`, llama.cpp only with `--metrics`. llama.cpp and
text-generation-inference count an answer's tokens when it ends, and say no time to first token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# Our word: the names that servers use for it, newest first. The first one present counts.
GAUGES: Mapping[str, tuple[str, ...]] = {
    "running": (
        "vllm:num_requests_running",
        "aphrodite:num_requests_running",
        "sglang:num_running_reqs",
        "llamacpp:requests_processing",
        "tgi_batch_current_size",
    ),
    "waiting": (
        "vllm:num_requests_waiting",
        "aphrodite:num_requests_waiting",
        "sglang:num_queue_reqs",
        "llamacpp:requests_deferred",
        "tgi_queue_size",
    ),
    # A fraction, whatever its name says.
    "kv_cache_usage": (
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "aphrodite:kv_cache_usage_perc",
        "aphrodite:gpu_cache_usage_perc",
        "sglang:token_usage",
        "llamacpp:kv_cache_usage_ratio",
    ),
}
COUNTERS: Mapping[str, tuple[str, ...]] = {
    "prompt_tokens": (
        "vllm:prompt_tokens_total",
        "aphrodite:prompt_tokens_total",
        "sglang:prompt_tokens_total",
        "llamacpp:prompt_tokens_total",
        "tgi_request_input_length_sum",
    ),
    "output_tokens": (
        "vllm:generation_tokens_total",
        "aphrodite:generation_tokens_total",
        "sglang:generation_tokens_total",
        "llamacpp:tokens_predicted_total",
        "tgi_request_generated_tokens_sum",
    ),
}
# Histograms, of which the sum and the count are read.
HISTOGRAMS: Mapping[str, tuple[str, ...]] = {
    "first_token": (
        "vllm:time_to_first_token_seconds",
        "aphrodite:time_to_first_token_seconds",
        "sglang:time_to_first_token_seconds",
    ),
    "per_token": (
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
        "aphrodite:inter_token_latency_seconds",
        "aphrodite:time_per_output_token_seconds",
        "sglang:inter_token_latency_seconds",
        "sglang:time_per_output_token_seconds",
        "tgi_request_mean_time_per_token_duration",
    ),
}
MODEL_LABELS = ("model_name", "model")
# Of several engines behind one page the fullest counts: fractions do not add up.
FRACTIONS = frozenset(GAUGES["kv_cache_usage"])

_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*$")
_LABEL = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')


def _wanted() -> frozenset[str]:
    plain = [name for table in (GAUGES, COUNTERS) for names in table.values() for name in names]
    parts = [f"{name}_{end}" for names in HISTOGRAMS.values() for name in names for end in ("sum", "count")]
    # OpenMetrics and older exporters leave `_total` off.
    bare = [name.removesuffix("_total") for name in plain]
    return frozenset([*plain, *parts, *bare])


WANTED = _wanted()


@dataclass(frozen=True, slots=True)
class Scrape:
    """Values of one scrape by our words; absent ones are not there."""

    gauges: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)
    # Sum in seconds, and count.
    histograms: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether nothing was recognised."""
        return not (self.gauges or self.counters or self.histograms)


def read_scrape(text: str, model: str | None = None) -> Scrape:
    """What a server's metrics say: sums over labels, fractions' highest; of several models `model`'s."""
    return scrape_of(_samples(text), model)


def scrape_of(samples: Iterable[tuple[str, str | None, float]], model: str | None = None) -> Scrape:
    """The same of samples: name, model label and value each; other names than the table's are left out."""
    values = _totals(samples, model)
    gauges = {word: value for word, names in GAUGES.items() if (value := _first(values, names)) is not None}
    counters = {
        word: value for word, names in COUNTERS.items() if (value := _first(values, names)) is not None
    }
    histograms: dict[str, tuple[float, float]] = {}
    for word, names in HISTOGRAMS.items():
        total = _first(values, [f"{name}_sum" for name in names])
        count = _first(values, [f"{name}_count" for name in names])
        if total is not None and count is not None:
            histograms[word] = (total, count)
    return Scrape(gauges, counters, histograms)


def _samples(text: str) -> Iterable[tuple[str, str | None, float]]:
    """Name, model label and value of each finite sample whose name is in the table."""
    for line in text.splitlines():
        found = _SAMPLE.match(line) if line and not line.startswith("#") else None
        if found is None or found[1] not in WANTED:
            continue
        value = _number(found[3])
        if value is not None:
            yield found[1], _model(found[2] or ""), value


def _totals(samples: Iterable[tuple[str, str | None, float]], model: str | None) -> dict[str, float]:
    kept = list(samples)
    # Labels that do not know our model's name say nothing about it: then all are taken.
    ours = [sample for sample in kept if sample[1] == model] if model is not None else []
    totals: dict[str, float] = {}
    for name, _, value in ours or kept:
        before = totals.get(name, 0.0)
        totals[name] = max(before, value) if name in FRACTIONS else before + value
    return totals


def _first(values: Mapping[str, float], names: Iterable[str]) -> float | None:
    for name in names:
        for spelling in (name, name.removesuffix("_total")):
            if spelling in values:
                return values[spelling]
    return None


def _model(labels: str) -> str | None:
    found = dict(_LABEL.findall(labels)) if labels else {}
    return next((found[label] for label in MODEL_LABELS if label in found), None)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
