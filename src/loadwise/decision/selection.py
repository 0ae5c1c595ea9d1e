"""The three ways to select: every candidate's share of requests like this one, and why.

All judge members by the same figures: quality, reliability, and the worse of the two latencies that the
request would have now, in units of its objectives ("strain"). What the request adds to the shared device
counts for those already in flight there.

- weighted_voting draws by given weight, quality, reliability and speed.
- best_of_n takes the highest expected utility.
- adaptive takes the best member whose strain, and that of everybody in the pool, stays below a target:
  the accurate ones at low load, fast ones as queues grow, and back as they shrink. On a shared device none
  is taken that is better than its lead.

Where a route says so (`price_weight`), what the request would cost counts beside quality and speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import mul
from types import MappingProxyType
from typing import Final

from loadwise.decision.choices import ChoiceReason
from loadwise.decision.facts import EnsembleStrategy
from loadwise.decision.shares import capped, cascade, explored, settles, tested_first
from loadwise.decision.standings import ranking
from loadwise.decision.views import Scene

# A share per candidate (sum 1), the reason, and the place of the candidate that is preferred.
Distribution = tuple[list[float], ChoiceReason, int]


def distribution(name: EnsembleStrategy, scene: Scene) -> Distribution:
    """What the strategy wants, with a little set aside for members that must be measured again."""
    if len(scene.known) == 1:
        return [1.0], ChoiceReason.ONLY_CANDIDATE, 0
    shares, reason, top = STRATEGIES[name](scene)
    if scene.panic:
        return shares, ChoiceReason.PANIC, top
    return explored(scene, shares), reason, top


def weighted_voting(scene: Scene) -> Distribution:
    """Shares that follow given weight, quality, reliability and speed; a new member's stays small."""
    speed, stakes, strains = scene.wish.speed, _stakes(scene), scene.strains()
    fastest = min(strains) or 1e-9
    votes = [
        stakes[at] * (fastest / strain if strain > fastest else 1.0) ** speed / (1.0 + strain**6)
        for at, strain in enumerate(strains)
    ]
    total = sum(votes)
    if total <= 0.0:
        return cascade(scene, range(len(votes))), ChoiceReason.WEIGHTED_VOTING, 0
    shares = capped(scene, [vote / total for vote in votes])
    return shares, ChoiceReason.WEIGHTED_VOTING, shares.index(max(shares))


def _stakes(scene: Scene) -> list[float]:
    """What speaks for each whatever the load: weight, quality, reliability, price, its share of traffic."""
    wish, standings = scene.wish, scene.standings
    stakes, takes, esteems = standings.stakes, scene.takes, standings.esteems
    if wish.preferred:
        more = 2.0 * wish.quality - 1.0
        stakes = [stake * esteems[at] ** more for at, stake in enumerate(stakes)]
    if scene.whole.route.price_weight > 0.0:
        thrifty = scene.priced([1.0] * len(stakes))
        stakes = [stake * thrifty[at] for at, stake in enumerate(stakes)]
    return [stake * takes[at] for at, stake in enumerate(stakes)] if standings.ailing else stakes


def best_of_n(scene: Scene) -> Distribution:
    """Everything to the highest expected utility, as far as its ramp allows, then to the next."""
    found = utilities(scene)
    best = found.index(max(found))
    order = [best]
    if not settles(scene, best):
        order = tested_first(scene, sorted(range(len(found)), key=lambda at: (-found[at], at)))
    return cascade(scene, order), ChoiceReason.BEST_OF_N, order[0]


def adaptive(scene: Scene) -> Distribution:
    """Everything to the best member that load leaves room for, as far as its ramp allows, then the next."""
    merits = _merits(scene)
    ranked = _ranked(scene, merits)
    order = _led(scene, ranked) if scene.leads and not scene.wish.preferred else ranked
    roomy, settled = _roomy(scene, order)
    roomy = tested_first(scene, roomy)
    top = roomy + ([] if settled else _by_harm(scene, [at for at in order if at not in roomy]))
    spent = not roomy or merits[top[0]] < merits[ranked[0]]
    reason = ChoiceReason.ADAPTIVE_HIGH_LOAD if spent else ChoiceReason.ADAPTIVE_LOW_LOAD
    return cascade(scene, top), reason, top[0]


STRATEGIES: Final[Mapping[EnsembleStrategy, Callable[[Scene], Distribution]]] = MappingProxyType(
    {
        EnsembleStrategy.WEIGHTED_VOTING: weighted_voting,
        EnsembleStrategy.BEST_OF_N: best_of_n,
        EnsembleStrategy.ADAPTIVE: adaptive,
    }
)


def utilities(scene: Scene) -> list[float]:
    """Expected utility of each in 0..1: reliable, within objectives, then quality, speed and price."""
    wanted, speed = scene.wish.quality, scene.wish.speed
    good, qualities, strains = scene.standings.good, scene.standings.qualities, scene.strains()
    worths = scene.priced(
        [wanted * qualities[at] + speed / (1.0 + strain) for at, strain in enumerate(strains)]
    )
    return [good[at] / (1.0 + strain**6) * worths[at] for at, strain in enumerate(strains)]


def _merits(scene: Scene) -> list[float]:
    """What adaptive ranks by: quality and price; speed too where the client or the strategy asks for it."""
    wish, standings = scene.wish, scene.standings
    if wish.preferred:
        return utilities(scene)
    hurried = not wish.pressed and wish.level > 0
    if not hurried and scene.whole.route.price_weight <= 0.0:
        return standings.merits
    worths = standings.qualities
    if hurried:
        share = 0.5 if wish.level == 1 else 0.0
        strains = scene.strains()
        worths = [share * quality + (1.0 - share) / (1.0 + strains[at]) for at, quality in enumerate(worths)]
    return list(map(mul, standings.reliable, scene.priced(worths)))


def _ranked(scene: Scene, merits: list[float]) -> list[int]:
    """Places by merit; of equals the default member comes first, then the cheaper."""
    found = scene.standings.ranked if merits is scene.standings.merits else ranking(merits)
    if found is not None:
        return found
    ids, default = scene.lineup.ids, scene.whole.route.default_member
    busy = scene.busy()
    keys = [(-merit, ids[at] != default, busy[at], at) for at, merit in enumerate(merits)]
    return [at for _, _, _, at in sorted(keys)]


def _led(scene: Scene, order: list[int]) -> list[int]:
    """The places without those that come before the lead of the device they share."""
    ids, pools = scene.lineup.ids, scene.lineup.pools
    waiting = {pools[at] for at in order if ids[at] in scene.leads}
    left = []
    for at in order:
        if ids[at] in scene.leads:
            waiting.discard(pools[at])
        if pools[at] not in waiting:
            left.append(at)
    return left


def _roomy(scene: Scene, order: Sequence[int]) -> tuple[list[int], bool]:
    """Those of the places in their order that have room, up to the first that takes all, if there is one."""
    pools, ids, leads = scene.lineup.pools, scene.lineup.ids, scene.leads
    found: list[int] = []
    full: set[str] = set()
    for at in order:
        pool = pools[at]
        if pool in full and ids[at] not in leads:
            continue
        if scene.has_room(at):
            found.append(at)
            if settles(scene, at):
                # Whoever comes after one that takes all would get nothing.
                return found, True
        elif scene.full(pool):
            full.add(pool)
    return found, False


def _by_harm(scene: Scene, places: Sequence[int]) -> list[int]:
    """Places by what a request does where there is no room: on a shared device everyone pays its cost."""
    fills, busy, reliable, shared = scene.fills(), scene.busy(), scene.standings.reliable, scene.whole.shared
    pools = scene.lineup.pools
    harms = [
        fill / reliable[at] * (busy[at] ** 2 if pools[at] in shared else 1.0) for at, fill in enumerate(fills)
    ]
    if scene.takes is scene.lineup.everyone:
        # The first takes all.
        return [min(sorted(places), key=harms.__getitem__)] if places else []
    return sorted(sorted(places), key=harms.__getitem__)
