"""Silence as evidence: who has requests and gives no token for longer than it can need.

Answers that end teach `outcome.learn`; those that hang end only with their timeout. What tells them from
slow ones is that nothing comes of any request there, while another could answer in its place. What is seen
is each replica's silence; a member is silent where all of its replicas that serve are.
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
    """A replica with requests in flight and no token for `seconds`; `isolated` once it gets no more."""

    member_id: str
    seconds: float
    isolated: bool = False
    # The longest prompt among those requests: it may still be reading it.
    prompt_tokens: int = 0
    # Empty where the whole member is meant; and how many of its replicas serve.
    replica_id: str = ""
    serving: int = 1


def patience_s(policy: Policy, belief: Belief, silence: Silence) -> float:
    """For how long the member may give no token: longer for a slow one and a long prompt, within bounds."""
    read_s = belief.first_fit.at(belief.prior.full_work) * belief.trend
    expected_s = (silence.prompt_tokens + FIRST_TOKEN_OVERHEAD_TOKENS) * read_s
    return min(max(policy.silent_alert_s, SLACK * expected_s), OUT_BY * policy.silent_page_s)


def spent(policy: Policy, belief: Belief, silence: Silence) -> float:
    """How much of the patience with it is over: beyond 1 it is taken out."""
    return silence.seconds / patience_s(policy, belief, silence)


def of_members(silences: Sequence[Silence]) -> tuple[Silence, ...]:
    """Members all of whose serving replicas are silent, each as long as the one that spoke last."""
    found: dict[str, list[Silence]] = {}
    for silence in silences:
        if not silence.isolated or not silence.serving or not silence.replica_id:
            found.setdefault(silence.member_id, []).append(silence)
    return tuple(_together(each) for each in found.values() if len(each) >= each[0].serving)


def beside_others(silences: Sequence[Silence]) -> tuple[Silence, ...]:
    """Those of members that have several replicas of which some serve."""
    named = (each for each in silences if each.replica_id and each.serving)
    return tuple(each for each in named if each.serving > 1 or each.isolated)


def _together(silences: Sequence[Silence]) -> Silence:
    return Silence(
        member_id=silences[0].member_id,
        seconds=min(each.seconds for each in silences),
        isolated=all(each.isolated for each in silences),
        prompt_tokens=max(each.prompt_tokens for each in silences),
    )


def mute(policy: Policy, beliefs: Mapping[str, Belief], silences: Sequence[Silence]) -> frozenset[str]:
    """Members of one route that are silent beyond patience; none where nobody else of it speaks.

    Where all that are asked fall silent together, it is the device, the network or we ourselves.
    """
    used = {
        silence.member_id: spent(policy, beliefs[silence.member_id], silence)
        for silence in of_members(silences)
        if silence.member_id in beliefs
    }
    serving = [name for name, belief in beliefs.items() if belief.health is not Health.OUT]
    return frozenset(beyond_patience(used, serving))


def beyond_patience(used: Mapping[str, float], serving: Sequence[str]) -> Sequence[str]:
    """Those of `serving` with whom all patience is `used` (above 1), the longest silent first.

    None where no other of them speaks.
    """
    if not any(used.get(name, 0.0) < SPEAKING for name in serving):
        return ()
    return sorted(
        (name for name in serving if used.get(name, 0.0) > 1.0), key=lambda name: (-used[name], name)
    )
