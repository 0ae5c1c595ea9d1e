"""Whose doing it was that a request got no answer: asked by learning, by error rates and by what is shown."""

from __future__ import annotations

from typing import Final

from loadwise.decision.facts import Ending, Outcome
from loadwise.decision.quick import Word

# Named once: on its enumeration each look-up costs as much as the step around it.
_FAILED: Final = Ending.FAILED


class Fault(Word):
    """Who failed, if anybody did."""

    NOBODY = "nobody"
    # A 4xx other than 429: the same request would fail anywhere.
    CLIENT = "client"
    # A 429: there was no room. An error to who asked, but no reason to think ill of the member.
    OVERLOAD = "overload"
    MEMBER = "member"


# The like.
_NOBODY: Final = Fault.NOBODY


def fault_of(outcome: Outcome) -> Fault:
    """Whose doing the outcome's failure was; nobody's where it did not fail."""
    if outcome.ending is not _FAILED:
        return _NOBODY
    status = outcome.status
    if status is None or not 400 <= status < 500:
        return Fault.MEMBER
    return Fault.OVERLOAD if status == 429 else Fault.CLIENT


def ours(status: int) -> bool:
    """Whether a refusal with this status broke a promise: there was no room (429), or the server failed."""
    return status == 429 or status >= 500


def shown_ending(outcome: Outcome) -> str:
    """How a request ended, in the word that histories and metrics use."""
    return "client_error" if fault_of(outcome) is Fault.CLIENT else outcome.ending.value
