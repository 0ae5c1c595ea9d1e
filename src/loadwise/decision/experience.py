"""What long experience makes of a prior: what fades from a member's lines settles in what is assumed of it.

A member that was busy before a quiet night is not unknown in the morning. Were it so, the first burst after
every quiet hour would go to the best member, as if that carried anything. What settled fades over a week, and
never says that one request alone is too much: who was slow is measured again.
"""

from __future__ import annotations

from math import exp, log
from typing import Final, NamedTuple

from loadwise.decision.beliefs import BATCH_START, PRIOR_IDLE, Belief, Fit, Prior, prior_of

# When so many outcomes have faded, the prior is most of the way (1 - 1/e) to what they told.
OUTCOMES: Final = 10.0
HALF_LIFE_S: Final = 7 * 86_400.0
# The share of the objectives that one request alone may seem to take.
BEARABLE: Final = 0.75
_LN2: Final = log(2.0)


class _Ends(NamedTuple):
    """Seconds per token on an idle device and on a full one."""

    idle_s: float
    full_s: float

    def towards(self, other: _Ends, share: float) -> _Ends:
        """So much (0..1) of the way to `other`."""
        idle_s, full_s = self
        return _Ends(idle_s + (other.idle_s - idle_s) * share, full_s + (other.full_s - full_s) * share)

    def bearable(self, most_s: float, alone: float) -> _Ends:
        """Both made smaller until a request alone, `alone` (0..1) of a full device, takes `most_s`."""
        idle_s, full_s = self
        one_s = idle_s + (full_s - idle_s) * alone
        return self if one_s <= most_s else _Ends(idle_s * most_s / one_s, full_s * most_s / one_s)


def settled(belief: Belief, kept: float, elapsed_s: float) -> Prior:
    """The prior when the lines keep `kept` (0..1) of their weight after `elapsed_s`."""
    before, full = belief.prior, belief.prior.full_work
    assumed = prior_of(belief.objectives, full)
    forgotten = 1.0 - exp(-_LN2 * elapsed_s / HALF_LIFE_S)

    def ends(was: _Ends, line_weight: float, fit: Fit, at_first: _Ends) -> _Ends:
        told = 1.0 - exp(-line_weight * (1.0 - kept) / OUTCOMES)
        now = was.towards(_Ends(fit.base, fit.at(full)), told).towards(at_first, forgotten)
        most_s = BEARABLE / PRIOR_IDLE * at_first.idle_s
        return now.bearable(most_s, (1.0 + BATCH_START) * belief.cost / full)

    output = ends(_output(before), belief.output_line.weight, belief.output_fit, _output(assumed))
    first = ends(_first(before), belief.first_line.weight, belief.first_fit, _first(assumed))
    return Prior(
        full_work=full,
        output_idle_s=output.idle_s,
        output_full_s=output.full_s,
        first_idle_s=first.idle_s,
        first_full_s=first.full_s,
        answer_tokens=before.answer_tokens,
    )


def _output(prior: Prior) -> _Ends:
    return _Ends(prior.output_idle_s, prior.output_full_s)


def _first(prior: Prior) -> _Ends:
    return _Ends(prior.first_idle_s, prior.first_full_s)
