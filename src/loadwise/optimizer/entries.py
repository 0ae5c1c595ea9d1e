"""The performance history: what reports show of each request, in some 160 bytes."""

from __future__ import annotations

from typing import Final

import msgspec

from loadwise.clock import iso_utc
from loadwise.decision.facts import Ending, Outcome, StrategyName
from loadwise.decision.fault import shown_ending
from loadwise.ports import JsonObject
from loadwise.telemetry.history import History
from loadwise.telemetry.prometheus import time_per_output_token_s

REFUSED: Final = "refused"
# What their clients did says nothing of the server.
CLIENTS_DOING: Final = frozenset({Ending.ABANDONED.value, "client_error"})


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One request of the history; one that was refused before an engine was asked names no member."""

    wall_s: float
    route: str
    # As histories and metrics call it (`fault.shown_ending`), or `REFUSED`.
    ending: str
    member_id: str = ""
    within: bool | None = None
    strategy: StrategyName | None = None
    total_s: float | None = None
    time_to_first_token_s: float | None = None
    time_per_output_token_s: float | None = None
    output_tokens: int | None = None
    load_score: float | None = None
    control: bool = False

    @property
    def judged(self) -> bool:
        """Whether it says something of the server."""
        return self.ending not in CLIENTS_DOING

    @property
    def succeeded(self) -> bool:
        """Whether it was answered without an error."""
        return self.ending == Ending.SUCCEEDED.value

    def as_json(self) -> JsonObject:
        """The entry as the report shows it."""
        return {
            "time": iso_utc(self.wall_s),
            "model": self.member_id or None,
            "route": self.route,
            "latency_ms": None if self.total_s is None else 1000.0 * self.total_s,
            # What its client spoilt neither succeeded nor failed.
            "success": None if self.ending == "client_error" else self.succeeded,
            "ending": self.ending,
            "within_objectives": self.within,
            "time_to_first_token_s": self.time_to_first_token_s,
            "time_per_output_token_s": self.time_per_output_token_s,
            "output_tokens": self.output_tokens,
            "strategy": None if self.strategy is None else self.strategy.value,
            "load_score": self.load_score,
            "control": self.control,
        }


def ended(wall_s: float, outcome: Outcome, strategy: StrategyName | None, within: bool | None) -> Entry:
    """The entry of a request that an engine ended."""
    return Entry(
        wall_s,
        outcome.route,
        shown_ending(outcome),
        outcome.member_id,
        within,
        strategy,
        outcome.total_s,
        outcome.time_to_first_token_s,
        time_per_output_token_s(outcome),
        outcome.output_tokens,
        outcome.load_score,
        outcome.control,
    )


def turned_away(wall_s: float, route: str) -> Entry:
    """The entry of a request that no engine got by the server's doing."""
    return Entry(wall_s, route, REFUSED, within=False)


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Entry)


def history(size: int, *, enabled: bool) -> History[Entry]:
    """An empty history of the last `size` requests."""
    return History(size, enabled=enabled, pack=_ENCODER.encode, unpack=_DECODER.decode)
