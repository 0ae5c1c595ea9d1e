"""What the engine says of itself: counts of now, speeds and times of the last seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The engine at one moment; speeds are 0 when nothing was computed lately, averages None without data."""

    running: int
    waiting: int
    places: int
    queue: int
    # Tokens held in the cache, of those it can hold: 0..1.
    cache_usage_fraction: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    # When the last token came; None before the first.
    last_token_s: float | None
    # From arrival to the first token, and between later ones.
    time_to_first_token_s: float | None
    time_per_output_token_s: float | None


class Window:
    """Sums of (value, weight) over the last `span_s` seconds, in O(1) per entry."""

    def __init__(self, span_s: float) -> None:
        self.span_s = span_s
        self._entries: deque[tuple[float, float, int]] = deque()
        self._sum = 0.0
        self._count = 0
        # When something was last added, also where it was forgotten since.
        self.last_s: float | None = None

    def add(self, now_s: float, value: float, count: int = 1) -> None:
        """`value` is the sum of `count` measurements."""
        self._entries.append((now_s, value, count))
        self._sum += value
        self._count += count
        self.last_s = now_s
        self._forget(now_s)

    def rate_per_s(self, now_s: float) -> float:
        """The values' sum per second of the window."""
        self._forget(now_s)
        return self._sum / self.span_s

    def mean(self, now_s: float) -> float | None:
        """The mean measurement, or None when the window is empty."""
        self._forget(now_s)
        return self._sum / self._count if self._count else None

    def _forget(self, now_s: float) -> None:
        while self._entries and self._entries[0][0] < now_s - self.span_s:
            _, value, count = self._entries.popleft()
            self._sum -= value
            self._count -= count
        if not self._entries:
            # Sums of differences drift; an empty window is exact.
            self._sum, self._count = 0.0, 0


class Statistics:
    """Counts tokens and times as steps end; the caller brings the time."""

    def __init__(self, rate_span_s: float = 10.0, time_span_s: float = 30.0) -> None:
        self.prompt_tokens = Window(rate_span_s)
        self.output_tokens = Window(rate_span_s)
        self.first_token_s = Window(time_span_s)
        self.per_token_s = Window(time_span_s)

    def token(self, now_s: float, *, since_s: float, first: bool) -> None:
        """A token came; `since_s` is the arrival for the first one, else when the one before came."""
        self.output_tokens.add(now_s, 1.0)
        (self.first_token_s if first else self.per_token_s).add(now_s, now_s - since_s)

    def prompt(self, now_s: float, tokens: int) -> None:
        """Prompt tokens were read."""
        self.prompt_tokens.add(now_s, float(tokens), tokens)
