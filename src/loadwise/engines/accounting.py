"""What we know of an upstream: our own requests on it, and its counters between two scrapes."""

from __future__ import annotations

from dataclasses import replace

from loadwise.decision.facts import EngineReading
from loadwise.engines.upstream_metrics import Scrape
from loadwise.ports import Clock, Progress
from loadwise.torch_engine.statistics import Window

SPAN_S = 30.0


class Accounting:
    """Counts our requests and times; turns scrapes into speeds."""

    def __init__(self, clock: Clock, replica_id: str, capacity_requests: int | None) -> None:
        self._clock = clock
        self._replica_id = replica_id
        self._capacity = capacity_requests
        self.in_flight = 0
        self._first_token_s = Window(SPAN_S)
        self._per_token_s = Window(SPAN_S)
        self._prompt_tokens = Window(SPAN_S)
        self._output_tokens = Window(SPAN_S)
        self._before: tuple[float, Scrape] | None = None
        # How many ran when others last waited, by the server's own words: its places then.
        self._places: int | None = None
        # Our answers that are being read, by identity; their tokens and the ended ones' at the last look.
        self._open: dict[int, Progress] = {}
        self._ended_tokens = 0
        self._tokens_seen = 0
        self._last_token_s: float | None = None

    def began(self, progress: Progress) -> None:
        """Notes an answer of ours that is being read."""
        self._open[id(progress)] = progress

    def ended(self, progress: Progress, began_s: float) -> None:
        """Notes an answer of ours that is over, whole or not."""
        now_s = self._clock.monotonic_s()
        tokens = progress.output_tokens or 0
        self._open.pop(id(progress), None)
        self._ended_tokens += tokens
        if progress.prompt_tokens:
            self._prompt_tokens.add(now_s, float(progress.prompt_tokens))
        if tokens:
            self._output_tokens.add(now_s, float(tokens))
        if progress.first_token_s is not None:
            self._first_token_s.add(now_s, progress.first_token_s - began_s)
            if tokens > 1:
                self._per_token_s.add(now_s, now_s - progress.first_token_s, tokens - 1)

    def _last_token(self, now_s: float) -> float | None:
        """When our tokens last became more, as far as one look after the other can tell."""
        seen = self._ended_tokens + sum(progress.output_tokens or 0 for progress in self._open.values())
        if seen > self._tokens_seen:
            self._tokens_seen, self._last_token_s = seen, now_s
        return self._last_token_s

    def own(self) -> EngineReading:
        """A reading from our own requests alone, for a server that offers no metrics."""
        now_s = self._clock.monotonic_s()
        return EngineReading(
            replica_id=self._replica_id,
            read_s=now_s,
            running_requests=self.in_flight,
            capacity_requests=self._capacity,
            prompt_tokens_per_s=self._prompt_tokens.rate_per_s(now_s),
            output_tokens_per_s=self._output_tokens.rate_per_s(now_s),
            tokens_counted_live=False,
            last_token_s=self._last_token(now_s),
            time_to_first_token_s=self._first_token_s.mean(now_s),
            time_per_output_token_s=self._per_token_s.mean(now_s),
        )

    def late(self) -> EngineReading:
        """A reading of a server too busy to tell of itself: our requests, in the places it spoke of."""
        reading = self.own()
        if self._places is None:
            return reading
        running = min(self.in_flight, self._places)
        return replace(reading, running_requests=running, waiting_requests=self.in_flight - running)

    def scraped(self, scrape: Scrape) -> EngineReading:
        """A reading from the server's metrics; speeds need the scrape before this one."""
        now_s = self._clock.monotonic_s()
        before, self._before = self._before, (now_s, scrape)
        gauges = scrape.gauges
        running, waiting = gauges.get("running"), gauges.get("waiting")
        usage, counted = gauges.get("kv_cache_usage"), "output_tokens" in scrape.counters
        if waiting and running:
            self._places = round(running)
        speed = _rate(before, scrape, "output_tokens", now_s)
        own_s = self._last_token(now_s)
        return EngineReading(
            replica_id=self._replica_id,
            read_s=now_s,
            running_requests=self.in_flight if running is None else round(running),
            waiting_requests=None if waiting is None else round(waiting),
            capacity_requests=self._capacity,
            kv_cache_usage_fraction=None if usage is None else min(usage, 1.0),
            prompt_tokens_per_s=_rate(before, scrape, "prompt_tokens", now_s),
            output_tokens_per_s=speed if counted else self._output_tokens.rate_per_s(now_s),
            tokens_counted_live=counted,
            # Others' tokens show that the engine works, too.
            last_token_s=now_s if speed else own_s,
            time_to_first_token_s=_mean(before, scrape, "first_token"),
            time_per_output_token_s=_mean(before, scrape, "per_token"),
        )


def _rate(before: tuple[float, Scrape] | None, scrape: Scrape, word: str, now_s: float) -> float | None:
    if before is None or word not in scrape.counters or word not in before[1].counters:
        return None
    elapsed_s, counted = now_s - before[0], scrape.counters[word] - before[1].counters[word]
    # A counter that went back was restarted: what it says now is since then.
    return None if elapsed_s <= 0 or counted < 0 else counted / elapsed_s


def _mean(before: tuple[float, Scrape] | None, scrape: Scrape, word: str) -> float | None:
    if before is None or word not in scrape.histograms or word not in before[1].histograms:
        return None
    total_s = scrape.histograms[word][0] - before[1].histograms[word][0]
    count = scrape.histograms[word][1] - before[1].histograms[word][1]
    return total_s / count if count > 0 and total_s >= 0 else None
