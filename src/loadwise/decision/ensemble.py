"""4 select: a request and the members that can answer it become one choice, with propensities and a reason.

Every strategy judges members by the same figures: quality, reliability, and the worse of the two latencies
that the request would have now, in units of its objectives ("strain"). What the request adds to the shared
device counts for those already in flight there.

- weighted_voting draws by given weight, quality, reliability and speed.
- best_of_n takes the highest expected utility.
- adaptive takes the best member whose strain, and that of everybody in the pool, stays below a target:
  the accurate ones at low load, fast ones as queues grow, and back as they shrink. On a shared device none
  is taken that is better than its lead.

Where a route says so (`price_weight`), what the request would cost counts beside quality and speed.

Members without fresh outcomes get a small share of requests, one at a time, so that they are measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import mul
from types import MappingProxyType
from typing import Final

from loadwise.decision.beliefs import MEASURED_OUTCOMES, Belief, Health
from loadwise.decision.candidates import Refusal, candidates
from loadwise.decision.choices import (
    EXPLORE_MOST,
    EXPLORE_SHARE,
    Choice,
    ChoiceReason,
    Remembered,
    choice_of,
    drawn,
)
from loadwise.decision.facts import (
    EnsembleStrategy,
    Member,
    MemberPressure,
    Policy,
    RequestFacts,
    Route,
    StrategyName,
)
from loadwise.decision.lineup import Lineup, lineup_of
from loadwise.decision.strategy import Strategy
from loadwise.decision.views import NO_WISH, Scene, wish_of

# Strain beyond which a conversation leaves its member, under overload only.
UNBEARABLE_STRAIN: Final = 2.0
# Share of requests that a member which is out gets when its probe is due, and that a new one gets.
PROBE_SHARE: Final = 0.05
NEW_SHARE: Final = 0.05
_EMPTY: Final[frozenset[str]] = frozenset()


def select(
    policy: Policy,
    route: Route,
    request: RequestFacts,
    beliefs: Mapping[str, Belief],
    pressures: Mapping[str, MemberPressure],
    strategy: Strategy | None,
    draw: float,
    now_s: float,
    *,
    remembered: Remembered | None = None,
    excluded: frozenset[str] = _EMPTY,
    control: bool = False,
) -> Choice | Refusal:
    """The member that answers `request`, by `draw` in 0..1 where chance decides, or why none can.

    `strategy` None means stopped: the default member answers. `excluded` are replica ids that just
    failed. `control` marks requests of an unoptimised block. Every route member needs a belief;
    `pressures` may lack members whose queues are not known.
    """
    whole = lineup_of(route)
    able = candidates(whole, request, excluded)
    if isinstance(able, Refusal):
        return able
    if request.model != route.name:
        return _single(able[0], ChoiceReason.NAMED, whole, request, beliefs, pressures, remembered)
    fixed = _fixed(policy, route, request, strategy, control=control)
    if fixed is not None or strategy is None:
        member = _default(route, able, beliefs)
        return _single(member, fixed or ChoiceReason.STOPPED, whole, request, beliefs, pressures, remembered)
    lineup = whole if able is route.members else Lineup(route, able)
    wish = wish_of(request, strategy, pressures)
    leads = strategy.leads.get(route.name, _EMPTY)
    scene = Scene(whole, lineup, request, beliefs, pressures, wish, now_s, leads)
    kept = _conversation(request, scene, strategy, remembered)
    if kept is not None:
        return kept
    shares, reason, top = _distribution(route.strategy, scene)
    return drawn(scene, shares, reason, top, draw, request, remembered)


def pick_replica(
    member: Member, in_flight: Mapping[str, int], draw: float, excluded: frozenset[str] = _EMPTY
) -> str | None:
    """The replica with most room, by `draw` (0..1) among equals; None when all are excluded."""
    if len(member.replicas) == 1 and not excluded:
        return member.replicas[0].replica_id
    left = [replica for replica in member.replicas if replica.replica_id not in excluded]
    if not left:
        return None
    taken = [in_flight.get(r.replica_id, 0) / (r.capacity_requests or 1) for r in left]
    least = min(taken)
    equal = [replica for replica, load in zip(left, taken, strict=True) if load == least]
    return equal[min(int(draw * len(equal)), len(equal) - 1)].replica_id


# --- what needs no comparison ------------------------------------------------------------------


def _fixed(
    policy: Policy, route: Route, request: RequestFacts, strategy: Strategy | None, *, control: bool
) -> ChoiceReason | None:
    if strategy is None:
        return ChoiceReason.STOPPED
    if request.off or not request.principal.optimize:
        return ChoiceReason.OFF
    if control:
        return ChoiceReason.CONTROL
    if not policy.enable_ensemble or not route.allow_degrade:
        return ChoiceReason.DEFAULT_ONLY
    return None


def _default(route: Route, able: Sequence[Member], beliefs: Mapping[str, Belief]) -> Member:
    """The default member where it can answer and is not out, else the best that can."""
    serving = [m for m in able if beliefs[m.member_id].health is not Health.OUT] or able
    for member in serving:
        if member.member_id == route.default_member:
            return member
    return max(serving, key=lambda member: -1.0 if member.quality is None else member.quality)


def _single(
    member: Member,
    reason: ChoiceReason,
    whole: Lineup,
    request: RequestFacts,
    beliefs: Mapping[str, Belief],
    pressures: Mapping[str, MemberPressure],
    remembered: Remembered | None,
) -> Choice:
    scene = Scene(whole, whole.alone(member.member_id), request, beliefs, pressures, NO_WISH, 0.0)
    return choice_of(scene, scene.lineup.certain(0), 0, reason, request, remembered)


def _conversation(
    request: RequestFacts, scene: Scene, strategy: Strategy, remembered: Remembered | None
) -> Choice | None:
    """The conversation's own member while it is healthy, fits and bears the load; or its first one again."""
    if remembered is None or request.conversation_id is None:
        return None
    home = _serving(scene, remembered.left)
    if home is not None and not remembered.returned and scene.takes[home] >= 1.0 and scene.fill(home) <= 1.0:
        return _certain(scene, home, ChoiceReason.CONVERSATION_RETURNED, request, remembered)
    own = _serving(scene, remembered.member_id)
    overloaded = strategy.name is StrategyName.PERFORMANCE
    if own is None or (overloaded and scene.strains[own] > UNBEARABLE_STRAIN):
        return None
    return _certain(scene, own, ChoiceReason.CONVERSATION, request, remembered)


def _serving(scene: Scene, member_id: str | None) -> int | None:
    """The place of a candidate that is not out."""
    ids = scene.lineup.ids
    at = ids.index(member_id) if member_id in ids else None
    return at if at is not None and scene.takes[at] > 0.0 and not scene.panic else None


def _certain(
    scene: Scene, at: int, reason: ChoiceReason, request: RequestFacts, remembered: Remembered
) -> Choice:
    return choice_of(scene, scene.lineup.certain(at), at, reason, request, remembered)


# --- the three strategies ------------------------------------------------------------------------

# A share per candidate (sum 1), the reason, and the place of the candidate that is preferred.
Distribution = tuple[list[float], ChoiceReason, int]


def _distribution(name: EnsembleStrategy, scene: Scene) -> Distribution:
    """What the strategy wants, with a little set aside for members that must be measured again."""
    if len(scene.known) == 1:
        return [1.0], ChoiceReason.ONLY_CANDIDATE, 0
    shares, reason, top = STRATEGIES[name](scene)
    if scene.panic:
        return shares, ChoiceReason.PANIC, top
    return _explored(scene, shares), reason, top


def weighted_voting(scene: Scene) -> Distribution:
    """Shares that follow given weight, quality, reliability and speed; a new member's stays small."""
    speed, care, strains = scene.wish.speed, 4.0 * scene.wish.quality, scene.strains
    fastest = min(strains) or 1e-9
    votes = [
        weight * take * met * reliable**2 * thrifty * max(quality, 0.01) ** care
        * (fastest / strain if strain > fastest else 1.0) ** speed / (1.0 + strain**6)
        for weight, take, met, reliable, thrifty, quality, strain in zip(
            scene.lineup.weights, scene.takes, scene.met(), scene.reliabilities(),
            scene.priced([1.0] * len(strains)), scene.qualities(), strains, strict=True,
        )
    ]  # fmt: skip
    total = sum(votes)
    if total <= 0.0:
        return _cascade(scene, range(len(votes))), ChoiceReason.WEIGHTED_VOTING, 0
    shares = _capped(scene, [vote / total for vote in votes])
    return shares, ChoiceReason.WEIGHTED_VOTING, shares.index(max(shares))


def best_of_n(scene: Scene) -> Distribution:
    """Everything to the highest expected utility, as far as its ramp allows, then to the next."""
    found = utilities(scene)
    best = found.index(max(found))
    order = [best]
    if not _settles(scene, best):
        order = _tested_first(scene, sorted(range(len(found)), key=lambda at: (-found[at], at)))
    return _cascade(scene, order), ChoiceReason.BEST_OF_N, order[0]


def adaptive(scene: Scene) -> Distribution:
    """Everything to the best member that load leaves room for, as far as its ramp allows, then the next."""
    merits = _merits(scene)
    ranked = _ranked(scene, merits)
    order = _led(scene, ranked) if scene.leads and not scene.wish.preferred else ranked
    roomy, settled = [], False
    for at in order:
        if scene.has_room(at):
            roomy.append(at)
            settled = _settles(scene, at)
            if settled:
                # Whoever comes after one that takes all would get nothing.
                break
    roomy = _tested_first(scene, roomy)
    top = roomy + ([] if settled else _by_harm(scene, [at for at in order if at not in roomy]))
    spent = not roomy or merits[top[0]] < merits[ranked[0]]
    reason = ChoiceReason.ADAPTIVE_HIGH_LOAD if spent else ChoiceReason.ADAPTIVE_LOW_LOAD
    return _cascade(scene, top), reason, top[0]


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
    worths = [
        wanted * quality + speed / (1.0 + strain)
        for quality, strain in zip(scene.qualities(), scene.strains, strict=True)
    ]
    return [
        reliable * met / (1.0 + strain**6) * worth
        for reliable, met, worth, strain in zip(
            scene.reliabilities(), scene.met(), scene.priced(worths), scene.strains, strict=True
        )
    ]


def _merits(scene: Scene) -> list[float]:
    """What adaptive ranks by: quality and price; speed too where the client or the strategy asks for it."""
    wish, qualities = scene.wish, scene.qualities()
    if wish.preferred:
        return utilities(scene)
    if not wish.pressed and wish.level > 0:
        share = 0.5 if wish.level == 1 else 0.0
        qualities = [
            share * quality + (1.0 - share) / (1.0 + strain)
            for quality, strain in zip(qualities, scene.strains, strict=True)
        ]
    return list(map(mul, scene.reliabilities(), scene.priced(qualities)))


def _ranked(scene: Scene, merits: Sequence[float]) -> list[int]:
    """Places by merit; of equals the default member comes first, then the cheaper."""
    if len(set(merits)) == len(merits):
        return sorted(range(len(merits)), key=merits.__getitem__, reverse=True)
    ids, default = scene.lineup.ids, scene.whole.route.default_member
    keys = [(-merit, ids[at] != default, scene.busy_s(at), at) for at, merit in enumerate(merits)]
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


def _by_harm(scene: Scene, places: Sequence[int]) -> list[int]:
    """Places by what a request does where there is no room: on a shared device everyone pays its cost."""
    keys, reliable = [], scene.reliabilities()
    for at in places:
        squared = scene.busy_s(at) ** 2 if scene.lineup.pools[at] in scene.whole.shared else 1.0
        keys.append((scene.fill(at) / reliable[at] * squared, at))
    keys.sort()
    return [at for _, at in keys]


def _settles(scene: Scene, at: int) -> bool:
    """Whether a member may lead and takes all."""
    return scene.takes[at] >= 1.0 and _trusted(scene, at)


def _trusted(scene: Scene, at: int) -> bool:
    """Whether a member may have more than a small share: measured, or chosen to lead and watched as such."""
    return scene.measured(at) or scene.lineup.ids[at] in scene.leads


def _tested_first(scene: Scene, order: list[int]) -> list[int]:
    """A new member never leads while a measured one can: it earns its place by exploration."""
    if not order or _trusted(scene, order[0]):
        return order
    tested = [at for at in order if scene.measured(at) and scene.takes[at] > 0.0]
    return tested + [at for at in order if at not in tested]


def _cascade(scene: Scene, order: Sequence[int]) -> list[float]:
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


def _capped(scene: Scene, shares: list[float]) -> list[float]:
    """Members that nobody has measured take `NEW_SHARE` each at most, while a measured one serves."""
    new = [
        at for at, b in enumerate(scene.known) if b.outcomes < MEASURED_OUTCOMES and shares[at] > NEW_SHARE
    ]
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


def _explored(scene: Scene, shares: list[float]) -> list[float]:
    """The shares with a little set aside for members that must be measured again or probed."""
    now_s = scene.now_s
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
        elif budget >= EXPLORE_SHARE and scene.takes[at] > 0.0 and scene.strains[at] <= 1.0:
            extra[at] = EXPLORE_SHARE
            budget -= EXPLORE_SHARE
    left = 1.0 - sum(extra.values())
    explored = [share * left for share in shares]
    for at, share in extra.items():
        explored[at] += share
    return explored
