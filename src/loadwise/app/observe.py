"""`loadwise observe`: reads servers' metrics, sends no request, says what the optimizer would have done."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from loadwise.decision.facts import EngineReading, Policy, StrategyName
from loadwise.decision.step import Decision, Observation, State, step
from loadwise.engines.accounting import Accounting
from loadwise.engines.upstream_metrics import read_scrape
from loadwise.errors import ConfigurationError, EngineError
from loadwise.ports import Clock, JsonObject

# Servers are asked no more often than this.
EVERY_S: Final = 1.0
TIMEOUT_S: Final = 2.0
MAX_BYTES: Final = 8 * 1024**2
# What no server's metrics say, however many they are.
CANNOT_TELL: Final = (
    "Which requests missed their objectives: averages hide the slow ones.",
    "How good the answers are: quality needs evaluation or feedback, or an operator's value.",
    "Which client, key or conversation causes the load.",
    "How long requests wait before they reach these servers, in other proxies or in clients.",
    "What another member would have answered, and how fast: that needs requests on both.",
)


class MetricsPage:
    """One server's `/metrics`, read without sending it anything else."""

    def __init__(self, name: str, url: str, clock: Clock, capacity_requests: int | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"--upstream {name}: {url!r} must begin with http:// or https://.", field="--upstream"
            )
        self.name = name
        self._url = url.rstrip("/").removesuffix("/v1") + "/metrics"
        self._accounting = Accounting(clock, name, capacity_requests)

    async def read(self, session: aiohttp.ClientSession) -> EngineReading:
        """What the server says of itself; `EngineError` where it says nothing that is known."""
        try:
            async with asyncio.timeout(TIMEOUT_S), session.get(self._url, allow_redirects=False) as answer:
                status, raw = answer.status, await answer.content.read(MAX_BYTES)
        except TimeoutError:
            raise EngineError(f"did not answer within {TIMEOUT_S:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineError(f"cannot be reached: {error or type(error).__name__}") from None
        if status != 200:
            raise EngineError(f"answers {status} to /metrics")
        scrape = read_scrape(raw.decode("utf-8", "replace"))
        if scrape.empty:
            raise EngineError("has metrics, but none that are known here")
        return self._accounting.scraped(scrape)


@dataclass(slots=True)
class Seen:
    """What was seen of one replica so far."""

    reading: EngineReading | None = None
    score: float | None = None
    absent: tuple[str, ...] = ()
    samples: int = 0
    failures: int = 0
    error: str | None = None
    above_knee_s: float = 0.0
    score_sum: float = 0.0
    scored: int = 0
    highest: float | None = None
    # Since when requests run and no token comes; None while that is not so.
    silent_from_s: float | None = None
    longest_silence_s: float = 0.0


@dataclass(slots=True)
class Would:
    """What the optimizer would have done."""

    strategy_s: Counter[str] = field(default_factory=Counter)
    changes: int = 0
    strategy: StrategyName | None = None
    # Seconds in which one replica was above the knee while another had room, by (from, to).
    moved_s: Counter[tuple[str, str]] = field(default_factory=Counter)


class Observer:
    """Follows replicas sample by sample; every figure is from what they said."""

    def __init__(self, names: Mapping[str, int | None], policy: Policy, now_s: float) -> None:
        self.policy = policy
        self.seen = {name: Seen() for name in names}
        self.would = Would()
        self._state = State()
        self._began_s = self._before_s = now_s

    def sample(self, results: Mapping[str, EngineReading | EngineError], now_s: float) -> None:
        """Takes one look at every replica: a reading, or why there is none."""
        passed_s, self._before_s = max(0.0, now_s - self._before_s), now_s
        for name, result in results.items():
            self._read(self.seen[name], result, now_s)
        self._state, decision = step(self.policy, self._state, self._observation(now_s))
        for name, seen in self.seen.items():
            self._scored(seen, decision, name, passed_s)
        self._decided(decision, passed_s)

    def _read(self, seen: Seen, result: EngineReading | EngineError, now_s: float) -> None:
        seen.samples += 1
        if isinstance(result, EngineError):
            seen.failures += 1
            seen.error = str(result)
            return
        seen.reading, seen.error = result, None
        speaks = result.output_tokens_per_s is None or result.output_tokens_per_s > 0
        if speaks or not result.running_requests:
            seen.silent_from_s = None
        elif seen.silent_from_s is None:
            seen.silent_from_s = now_s
        if seen.silent_from_s is not None:
            seen.longest_silence_s = max(seen.longest_silence_s, now_s - seen.silent_from_s)

    def _observation(self, now_s: float) -> Observation:
        read = {name: seen.reading for name, seen in self.seen.items() if seen.reading is not None}
        return Observation(now_s=now_s, engines={name: [reading] for name, reading in read.items()})

    def _scored(self, seen: Seen, decision: Decision, name: str, passed_s: float) -> None:
        pool = decision.pools.get(name)
        seen.score = None if pool is None else pool.score.value
        seen.absent = () if pool is None else pool.score.absent
        if seen.score is None:
            return
        seen.scored += 1
        seen.score_sum += seen.score
        seen.highest = seen.score if seen.highest is None else max(seen.highest, seen.score)
        if seen.score >= self.policy.load_threshold_high:
            seen.above_knee_s += passed_s

    def _decided(self, decision: Decision, passed_s: float) -> None:
        scores = {name: seen.score for name, seen in self.seen.items() if seen.score is not None}
        if not scores:
            return
        would, now = self.would, decision.worst.strategy.name
        would.changes += would.strategy is not None and would.strategy is not now
        would.strategy = now
        would.strategy_s[now.value] += passed_s  # type: ignore[assignment]
        busiest, idlest = max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)
        if scores[busiest] >= self.policy.load_threshold_high > scores[idlest] + self.policy.jump:
            would.moved_s[busiest, idlest] += passed_s  # type: ignore[assignment]

    # --- what is told ---

    def report(self) -> JsonObject:
        """Everything seen so far, as JSON values."""
        now_s = self._before_s
        return {
            "observed_s": now_s - self._began_s,
            "knee": self.policy.load_threshold_high,
            "replicas": {name: self._replica(seen, now_s) for name, seen in self.seen.items()},
            "would_have_done": self._would(),
            "metrics_cannot_tell": [*CANNOT_TELL, *self._unsaid()],
        }

    def state(self, seen: Seen, now_s: float) -> str:
        """One of unread, unreadable, stale, silent, saturated, fine."""
        if seen.reading is None:
            return "unread"
        if now_s - seen.reading.read_s > self.policy.stale_after_s:
            return "stale"
        if seen.error is not None:
            return "unreadable"
        if seen.silent_from_s is not None and now_s - seen.silent_from_s >= self.policy.silent_alert_s:
            return "silent"
        saturated = seen.score is not None and seen.score >= self.policy.load_threshold_high
        return "saturated" if saturated else "fine"

    def _replica(self, seen: Seen, now_s: float) -> JsonObject:
        reading = seen.reading
        return {
            "state": self.state(seen, now_s),
            "load_score": seen.score,
            "mean_load_score": seen.score_sum / seen.scored if seen.scored else None,
            "highest_load_score": seen.highest,
            "above_knee_s": seen.above_knee_s,
            "running_requests": None if reading is None else reading.running_requests,
            "waiting_requests": None if reading is None else reading.waiting_requests,
            "kv_cache_usage_fraction": None if reading is None else reading.kv_cache_usage_fraction,
            "output_tokens_per_s": None if reading is None else reading.output_tokens_per_s,
            "time_to_first_token_s": None if reading is None else reading.time_to_first_token_s,
            "longest_silence_s": seen.longest_silence_s,
            "reading_age_s": None if reading is None else now_s - reading.read_s,
            "samples": seen.samples,
            "failed_samples": seen.failures,
            "error": seen.error,
            "absent": list(seen.absent),
        }

    def _would(self) -> JsonObject:
        would = self.would
        return {
            "strategy": None if would.strategy is None else would.strategy.value,
            "strategy_seconds": dict(would.strategy_s),
            "strategy_changes": would.changes,
            "moved_load": [
                {"from": source, "to": target, "seconds": seconds}
                for (source, target), seconds in would.moved_s.most_common()
            ],
        }

    def _unsaid(self) -> list[str]:
        """What these servers could say and do not."""
        return [
            f"{name} does not say: {', '.join(seen.absent)}."
            for name, seen in self.seen.items()
            if seen.reading is not None and seen.absent
        ]


async def observe(
    pages: list[MetricsPage],
    observer: Observer,
    clock: Clock,
    *,
    duration_s: float | None,
    every_s: float = EVERY_S,
    shown: Callable[[Observer], None] = lambda observer: None,
) -> None:
    """Looks at every page at most once a second, until `duration_s` is over (None: until cancelled)."""
    end_s = None if duration_s is None else clock.monotonic_s() + duration_s
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S)
    async with aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, timeout=timeout
    ) as session:
        while True:
            began_s = clock.monotonic_s()
            results = await asyncio.gather(*(_looked(page, session) for page in pages))
            observer.sample(dict(results), clock.monotonic_s())
            shown(observer)
            left_s = max(EVERY_S, every_s) - (clock.monotonic_s() - began_s)
            if end_s is not None and clock.monotonic_s() + max(0.0, left_s) > end_s:
                return
            await asyncio.sleep(max(0.0, left_s))


async def _looked(
    page: MetricsPage, session: aiohttp.ClientSession
) -> tuple[str, EngineReading | EngineError]:
    try:
        return page.name, await page.read(session)
    except EngineError as error:
        return page.name, error
