"""The latencies that a request is expected to see, as a choice carries them and admission judges them."""

from __future__ import annotations

from typing import NamedTuple


class Latencies(NamedTuple):
    """Seconds that a request would see at least on a member now, and if it were the member's only one."""

    # To the first token, the wait for a place included.
    first_s: float
    # Per further token.
    each_s: float
    # Of the first token's for a place: 0 while one is free, or where places are not known.
    wait_s: float
    # The same without the member's other requests; those of others on its device stay.
    first_alone_s: float
    each_alone_s: float
    # Work of other members' requests on the device.
    beside: float = 0.0
