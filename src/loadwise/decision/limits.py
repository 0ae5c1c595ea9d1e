"""An operator's limits of a member: requests and tokens within any minute, requests at once, context.

A minute is kept by the second. A second counts whole while any part of it lies within the last minute, so
that no 60 seconds hold more requests than allowed, wherever they begin.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Final, NamedTuple

# Seconds that may hold something of the last minute: sixty, and the one that it began in.
KEPT: Final = 61


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a member may be asked for, all its replicas together; None is unlimited."""

    requests_per_minute: int | None = None
    # Of prompts and answers together.
    tokens_per_minute: int | None = None
    max_concurrent_requests: int | None = None
    max_context_tokens: int | None = None

    @property
    def by_minute(self) -> bool:
        """Whether the last minute must be known."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None


NO_LIMITS: Final = Limits()


class Second(NamedTuple):
    """What began within one second of the monotonic clock."""

    at: int
    requests: int
    tokens: int


# Seconds in order, the oldest first; those in which nothing began are not there.
Minute = tuple[Second, ...]
EMPTY: Final[Minute] = ()


def recent(minute: Minute, now_s: float) -> Minute:
    """What of it still lies within the last minute."""
    oldest = floor(now_s) - KEPT + 1
    if not minute or minute[0].at >= oldest:
        return minute
    return tuple([second for second in minute if second.at >= oldest])


def counted(minute: Minute, now_s: float, tokens: int) -> Minute:
    """The minute with one request more, which is expected to need `tokens`."""
    held, at = recent(minute, now_s), floor(now_s)
    if held and held[-1].at >= at:
        last = held[-1]
        return (*held[:-1], Second(last.at, last.requests + 1, last.tokens + tokens))
    return (*held, Second(at, 1, tokens))


def uncounted(minute: Minute, tokens: int) -> Minute:
    """The minute without the request that was counted in it last."""
    *held, last = minute
    rest = Second(last.at, last.requests - 1, last.tokens - tokens)
    return (*held, rest) if rest.requests else tuple(held)


def settled(minute: Minute, began_s: float, more: int) -> Minute:
    """The minute once a request that began in it is known to have needed `more` tokens than expected."""
    at = floor(began_s)
    return tuple([s if s.at != at else Second(at, s.requests, max(0, s.tokens + more)) for s in minute])


def together(*minutes: Minute) -> Minute:
    """What began within each second, of all the minutes."""
    sums: dict[int, tuple[int, int]] = {}
    for at, requests, tokens in (second for minute in minutes for second in minute):
        before = sums.get(at, (0, 0))
        sums[at] = before[0] + requests, before[1] + tokens
    return tuple([Second(at, *sums[at]) for at in sorted(sums)])


def used(minute: Minute, now_s: float) -> tuple[int, int]:
    """Requests and tokens of the last minute."""
    held = recent(minute, now_s)
    return sum([second.requests for second in held]), sum([second.tokens for second in held])


def wait_for_request_s(limits: Limits, minute: Minute, now_s: float) -> float:
    """Seconds until one more request may begin; 0 where it may now."""
    most = limits.requests_per_minute
    return 0.0 if most is None else _wait_s(minute, now_s, 1, most, requests=True)


def wait_for_tokens_s(limits: Limits, minute: Minute, now_s: float, tokens: int) -> float:
    """Seconds until a request of so many tokens may begin; 0 where it may now.

    One that is larger than the limit may begin when nothing else was asked for within the minute.
    """
    most = limits.tokens_per_minute
    return 0.0 if most is None else _wait_s(minute, now_s, min(tokens, most), most, requests=False)


def _wait_s(minute: Minute, now_s: float, needed: int, most: int, *, requests: bool) -> float:
    held = recent(minute, now_s)
    excess = sum([s.requests if requests else s.tokens for s in held]) + needed - most
    if excess <= 0:
        return 0.0
    for second in held:
        excess -= second.requests if requests else second.tokens
        if excess <= 0:
            return second.at + KEPT - now_s
    raise AssertionError("unreachable: what is needed never exceeds the limit")
