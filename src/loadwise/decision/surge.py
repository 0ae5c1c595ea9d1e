"""A surge: more requests than the lead of a device carries, seen at the request that makes it one.

Requests fill a bucket that drains as fast as the lead answers. Below what the lead carries it is nearly
empty whatever chance does; above, it fills, and where it overflows nobody need wait for a mean over seconds
(as a meter, the leaky bucket; as a test, the cumulative sums of Page 1954).
"""

from __future__ import annotations

from math import inf
from typing import Final, NamedTuple


class Limit(NamedTuple):
    """What a lead bears: requests per second, and so many more at a time; `since_s` is when it began."""

    per_s: float = inf
    room: float = inf
    since_s: float = 0.0


class Surge(NamedTuple):
    """Requests in the bucket, and since it was last empty: when that was, and how many came."""

    level: float = 0.0
    since_s: float = 0.0
    requests: int = 0
    at_s: float = 0.0


NO_LIMIT: Final = Limit()
NO_SURGE: Final = Surge()


def poured(surge: Surge, limit: Limit, now_s: float) -> Surge:
    """The bucket after one more request; what came under another lead no longer counts."""
    left = surge.level - (now_s - surge.at_s) * limit.per_s if surge.since_s >= limit.since_s else 0.0
    if left <= 0.0:
        return Surge(1.0, now_s, 1, now_s)
    return Surge(left + 1.0, surge.since_s, surge.requests + 1, now_s)


def overflows(surge: Surge, limit: Limit) -> bool:
    """Whether more came under this lead than it bears."""
    return surge.level > limit.room and surge.since_s >= limit.since_s
