"""Where a request's time went: the gateway, the engine's queue, reading the prompt, writing the answer."""

from __future__ import annotations

from typing import NamedTuple

from loadwise.decision.facts import Outcome


class Shares(NamedTuple):
    """Seconds of each stage, in order; None where it could not be told apart."""

    gateway_s: float | None
    queue_s: float | None
    prefill_s: float | None
    decode_s: float | None


def queued_s(first_s: float | None, wait_s: float, read_s: float | None) -> float | None:
    """How long a place was waited for: what the first token took beyond reading the prompt.

    An estimate, for engines that do not tell it. `wait_s` is the wait that was expected at dispatch, 0 where
    a place was free; `read_s` what reading was expected to take, None where places are not known.
    """
    if first_s is None or read_s is None:
        return None
    return 0.0 if wait_s <= 0.0 else max(0.0, first_s - read_s)


def shares(outcome: Outcome) -> Shares:
    """The stages of an answer; the gateway's lies before `total_s`, the others add up to it."""
    first_s, total_s, queue_s = outcome.time_to_first_token_s, outcome.total_s, outcome.queue_s
    return Shares(
        gateway_s=outcome.gateway_s,
        queue_s=queue_s,
        prefill_s=None if first_s is None or queue_s is None else max(0.0, first_s - queue_s),
        decode_s=None if first_s is None or total_s is None else max(0.0, total_s - first_s),
    )
