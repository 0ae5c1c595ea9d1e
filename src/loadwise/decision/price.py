"""What answers cost in money, and how thrift weighs in a choice. Prices are in the operator's currency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from loadwise.decision.facts import Outcome, RequestFacts

TOKENS: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Per million tokens; cached prompt tokens cost what others do where nothing else is said."""

    input_per_million: float
    output_per_million: float
    cached_input_per_million: float | None = None

    def of(self, prompt_tokens: float, output_tokens: float, cached_tokens: float = 0.0) -> float:
        """The price of so many tokens; `cached_tokens` are among the prompt's."""
        cached = min(cached_tokens, prompt_tokens)
        cheap = self.cached_input_per_million
        return (
            (prompt_tokens - cached) * self.input_per_million
            + cached * (self.input_per_million if cheap is None else cheap)
            + output_tokens * self.output_per_million
        ) / TOKENS


def spent(price: Price, outcome: Outcome) -> float | None:
    """What an attempt cost by the tokens that were counted; None where none were."""
    if outcome.prompt_tokens is None and outcome.output_tokens is None:
        return None
    return price.of(outcome.prompt_tokens or 0, outcome.output_tokens or 0, outcome.cached_tokens)


def answer_tokens(request: RequestFacts, usual: float) -> float:
    """Output tokens that a request is expected to make where answers usually have `usual`."""
    explicit = request.explicit
    most = explicit.get("max_completion_tokens", explicit.get("max_tokens", usual))
    return min(usual, max(1.0, most)) * max(1, request.n)


def thrifts(prices: Sequence[float | None]) -> list[float]:
    """0..1 of each: 1 the cheapest; an unknown price ranks as the mean of the known ones."""
    known = [price for price in prices if price is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    if high <= 0.0:
        return [1.0] * len(prices)
    found = [None if price is None else 1.0 - (price - low) / high for price in prices]
    seen = [thrift for thrift in found if thrift is not None]
    mean = sum(seen) / len(seen)
    return [mean if thrift is None else thrift for thrift in found]
