"""Ranks become shares: who may take all, what ramps and new members take, what is set aside for measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loadwise.decision.rotation import PROBE_SHARE
from loadwise.decision.views import Scene

# Share of requests for measuring one member again, and for all such members together.
EXPLORE_SHARE: Final = 0.01
EXPLORE_MOST: Final = 0.03
# Share of requests that a new member gets.
NEW_SHARE: Final = 0.05


def settles(scene: Scene, at: int) -> bool:
    """Whether a member may lead and takes all."""
    return scene.takes[at] >= 1.0 and _trusted(scene, at)


def _trusted(scene: Scene, at: int) -> bool:
    """Whether a member may have more than a small share: measured, or chosen to lead and watched as such."""
    return scene.measured(at) or scene.lineup.ids[at] in scene.leads


def tested_first(scene: Scene, order: list[int]) -> list[int]:
    """A new member never leads while a measured one can: it earns its place by exploration."""
    if not order or _trusted(scene, order[0]):
        return order
    tested = [at for at in order if scene.measured(at) and scene.takes[at] > 0.0]
    return tested + [at for at in order if at not in tested]


def cascade(scene: Scene, order: Sequence[int]) -> list[float]:
    """Each in order takes its share of what is left; the first that takes all ends it."""
    shares = [0.0] * len(scene.known)
    left = 1.0
    for at in order:
        taken = left * scene.takes[at]
        shares[at] = taken
        left -= taken
        if left <= 0.0:
            return shares
    # Everyone is on a ramp: the first takes what is left.
    shares[max(order, key=scene.takes.__getitem__)] += left
    return shares


def capped(scene: Scene, shares: list[float]) -> list[float]:
    """Members that nobody has measured take `NEW_SHARE` each at most, while a measured one serves."""
    if not scene.standings.unmeasured:
        return shares
    new = [at for at, share in enumerate(shares) if share > NEW_SHARE and not scene.measured(at)]
    if not new:
        return shares
    rest = sum([share for at, share in enumerate(shares) if scene.measured(at)])
    if rest <= 0.0:
        return shares
    scale = (rest + sum([shares[at] - NEW_SHARE for at in new])) / rest
    capped = [share * scale if scene.measured(at) else share for at, share in enumerate(shares)]
    for at in new:
        capped[at] = NEW_SHARE
    return capped


def explored(scene: Scene, shares: list[float]) -> list[float]:
    """The shares with a little set aside for members that must be measured again or probed."""
    now_s, standings = scene.now_s, scene.standings
    if not standings.ailing and now_s < standings.fresh_until_s:
        return shares
    due = [at for at, belief in enumerate(scene.known) if now_s >= belief.stale_at_s or not scene.takes[at]]
    due = [at for at in due if shares[at] < PROBE_SHARE and scene.in_flight(at) == 0]
    return _set_aside(scene, shares, due) if due else shares


def _set_aside(scene: Scene, shares: list[float], due: Sequence[int]) -> list[float]:
    """The shares with `PROBE_SHARE` or `EXPLORE_SHARE` for each of `due` that is bearable."""
    extra: dict[int, float] = {}
    budget = EXPLORE_MOST
    for at in due:
        if scene.probe_due(at):
            extra[at] = PROBE_SHARE
        elif budget >= EXPLORE_SHARE and scene.takes[at] > 0.0 and scene.look(at).strain <= 1.0:
            extra[at] = EXPLORE_SHARE
            budget -= EXPLORE_SHARE
    left = 1.0 - sum(extra.values())
    explored = [share * left for share in shares]
    for at, share in extra.items():
        explored[at] += share
    return explored
