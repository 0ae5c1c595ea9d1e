"""Silence as evidence: a member that has requests and gives no token for longer than it can need.

Answers that end teach `outcome.learn`; those that hang end only with their timeout. What tells them from
slow ones is that nothing comes of any request of the member, while another could answer in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from loadwise.decision.beliefs import FIRST_TOKEN_OVERHEAD_TOKENS, Belief, Health
from loadwise.decision.facts import Policy

# A first token may take so many times what it is expected to take on a full device.
SLACK: Final = 3.0
# A silent member is out within this share of the time after which it is a page.
OUT_BY: Final = 0.8
# Who was silent for less than this share of its patience speaks.
SPEAKING: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """A member with requests in flight and no token for `seconds`; `isolated` once it gets no more."""

    member_id: str
    seconds: float
    isolated: bool = False
    # The longest prompt among those requests: it may still be reading it.
    prompt_tokens: int = 0


def patience_s(policy: Policy, belief: Belief, silence: Silence) -> float:
    """For how long the member may give no token: longer for a slow one and a long prompt, within bounds."""
    read_s = belief.first_fit.at(belief.prior.full_work) * belief.trend
    expected_s = (silence.prompt_tokens + FIRST_TOKEN_OVERHEAD_TOKENS) * read_s
    return min(max(policy.silent_alert_s, SLACK * expected_s), OUT_BY * policy.silent_page_s)


def mute(policy: Policy, beliefs: Mapping[str, Belief], silences: Sequence[Silence]) -> frozenset[str]:
    """Members of one route that are silent beyond patience; none where nobody else of it speaks.

    Where all that are asked fall silent together, it is the device, the network or we ourselves.
    """
    spent = {
        silence.member_id: silence.seconds / patience_s(policy, beliefs[silence.member_id], silence)
        for silence in silences
        if silence.member_id in beliefs
    }
    serving = [name for name, belief in beliefs.items() if belief.health is not Health.OUT]
    if not any(spent.get(name, 0.0) < SPEAKING for name in serving):
        return frozenset()
    return frozenset(name for name in serving if spent.get(name, 0.0) > 1.0)
