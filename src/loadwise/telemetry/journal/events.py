"""What the optimizer tells the journal, as it happens: references to facts that never change.

An event is made on the request path and only handed over there; everything else is done in the
journal's own thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from loadwise.decision.admission import Admission, Entry
from loadwise.decision.beliefs import Belief
from loadwise.decision.candidates import Refusal
from loadwise.decision.choices import Choice
from loadwise.decision.facts import Outcome, Policy, RequestFacts
from loadwise.decision.health import HealthChange
from loadwise.decision.parameters import Tuning
from loadwise.decision.question import Question
from loadwise.decision.step import Decision, Observation, State
from loadwise.ports import Dispatch, Enrolled, JsonObject


class Chose(NamedTuple):
    """The core was asked for a member, and answered."""

    question: Question
    choice: Choice | Refusal


class Judged(NamedTuple):
    """Whether the member just chosen could take the request; told alone where it was kept out of it."""

    entry: Entry
    admission: Admission


class Sent(NamedTuple):
    """The choice just made became a dispatch; `in_flight` counts by replica where there are several.

    `let_in` None: nothing was asked of the member's room.
    """

    dispatch: Dispatch
    tuning: Tuning
    replica_draw: float
    in_flight: Mapping[str, int]
    let_in: Judged | None = None
    enrolled: Enrolled | None = None


class Refused(NamedTuple):
    """A request got no engine; `now_s` is when it was asked for (monotonic), `again` after an attempt."""

    request: RequestFacts
    status: int
    code: str | None
    retry_after_s: float | None
    now_s: float
    again: bool = False


class Learned(NamedTuple):
    """An outcome made `after` of `before`; the very same object where it taught nothing."""

    policy: Policy
    outcome: Outcome
    before: Belief
    after: Belief


class Ended(NamedTuple):
    """A dispatch ended; `within` says whether within its objectives, None where that was not seen."""

    dispatch: Dispatch
    outcome: Outcome
    within: bool | None


class Stepped(NamedTuple):
    """The control loop made one step."""

    policy: Policy
    before: State
    observation: Observation
    after: State
    decision: Decision


class Reviewed(NamedTuple):
    """Members left or returned between steps."""

    now_s: float
    changes: tuple[HealthChange, ...]


class Configured(NamedTuple):
    """Another configuration is in force; `reverting` where loadwise itself put it back.

    `by` names the other process that applied it, and is empty for this one.
    """

    now_s: float
    version: int
    changes: JsonObject
    reverting: bool
    by: str = ""


class Built(NamedTuple):
    """A build came to its end; `became` is its state, `reverted` for one that served until then."""

    now_s: float
    model_id: str
    mode: str
    became: str
    reason: str


class Rolled(NamedTuple):
    """The share (0..1) of a route, or of a key on it, that is optimised became another."""

    now_s: float
    route: str
    key: str | None
    before: float
    after: float
    reason: str


Event = Chose | Sent | Judged | Refused | Learned | Ended | Stepped | Reviewed | Configured | Built | Rolled
# Takes an event within microseconds, never waits and never raises.
Witness = Callable[[Event], None]
