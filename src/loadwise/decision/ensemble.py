"""4 select: a request and the members that can answer it become one choice, with propensities and a reason.

Every strategy judges members by the same figures: quality, reliability, and the worse of the two latencies
that the request would have now, in units of its objectives ("strain"). What the request adds to the shared
device counts for those already in flight there.

- weighted_voting draws by given weight, quality, reliability and speed.
- best_of_n takes the highest expected utility.
- adaptive takes the best member whose strain, and that of everybody in the pool, stays below a target:
  the accurate ones at low load, fast ones as queues grow, and back as they shrink.

Members without fresh outcomes get a small share of requests, one at a time, so that they are measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from loadwise.decision.beliefs import Belief, Health, pool_of
from loadwise.decision.candidates import Refusal, candidates
from loadwise.decision.choices import (
    EXPLORE_MOST,
    EXPLORE_SHARE,
    Choice,
    ChoiceReason,
    Remembered,
    choice_of,
    drawn,
    memory,
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
from loadwise.decision.strategy import Strategy
from loadwise.decision.views import View, Wish, added_work, pools_of, views_of, wish_of

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
    able = candidates(route, request, excluded)
    if isinstance(able, Refusal):
        return able
    if request.model != route.name:
        return _single(able[0], ChoiceReason.NAMED, route, request, beliefs, pressures, remembered)
    fixed = _fixed(policy, route, request, strategy, control=control)
    if fixed is not None or strategy is None:
        member = _default(route, able, beliefs)
        return _single(member, fixed or ChoiceReason.STOPPED, route, request, beliefs, pressures, remembered)
    wish = wish_of(request, strategy, pressures)
    views = views_of(route, able, request, beliefs, pressures, wish, now_s)
    kept = _conversation(request, views, strategy, remembered)
    if kept is not None:
        return kept
    shares, reason, top = _distribution(route.strategy, views, wish)
    return drawn(views, shares, reason, top, draw, request, remembered)


def pick_replica(
    member: Member, in_flight: Mapping[str, int], draw: float, excluded: frozenset[str] = _EMPTY
) -> str | None:
    """The replica with most room, by `draw` (0..1) among equals; None when all are excluded."""
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
    route: Route,
    request: RequestFacts,
    beliefs: Mapping[str, Belief],
    pressures: Mapping[str, MemberPressure],
    remembered: Remembered | None,
) -> Choice:
    belief = beliefs.get(member.member_id)
    pool = pools_of(route, beliefs, pressures)[pool_of(member)]
    pressure = pressures.get(member.member_id)
    work = pool.work + added_work(belief.cost if belief else 1.0, pressure.in_flight if pressure else 0)
    return Choice(
        member_id=member.member_id,
        propensity=1.0,
        reason=reason,
        candidates=((member.member_id, 1.0),),
        work=work,
        conversation=memory(request, remembered, member.member_id),
    )


def _conversation(
    request: RequestFacts, views: Sequence[View], strategy: Strategy, remembered: Remembered | None
) -> Choice | None:
    """The conversation's own member while it is healthy, fits and bears the load; or its first one again."""
    if remembered is None or request.conversation_id is None:
        return None
    by_id = {view.member_id: view for view in views if view.share > 0.0}
    home = by_id.get(remembered.left or "")
    if home is not None and not remembered.returned and home.share >= 1.0 and home.fill <= 1.0:
        return _certain(home, views, ChoiceReason.CONVERSATION_RETURNED, request, remembered)
    own = by_id.get(remembered.member_id)
    if own is None or (strategy.name is StrategyName.PERFORMANCE and own.strain > UNBEARABLE_STRAIN):
        return None
    return _certain(own, views, ChoiceReason.CONVERSATION, request, remembered)


def _certain(
    view: View, views: Sequence[View], reason: ChoiceReason, request: RequestFacts, remembered: Remembered
) -> Choice:
    shares = [1.0 if other is view else 0.0 for other in views]
    return choice_of(views, shares, views.index(view), reason, request, remembered)


# --- the three strategies ------------------------------------------------------------------------

Distribution = tuple[list[float], ChoiceReason, int]


def _distribution(name: EnsembleStrategy, views: Sequence[View], wish: Wish) -> Distribution:
    """A share per view (sum 1) before exploration, the reason, and the view that is preferred."""
    if len(views) == 1:
        return [1.0], ChoiceReason.ONLY_CANDIDATE, 0
    panic = all(view.share <= 0.0 for view in views)
    if panic:
        for view in views:
            view.share, view.probe_due = 1.0, False
    shares, reason, top = STRATEGIES[name](views, wish)
    if panic:
        return shares, ChoiceReason.PANIC, top
    return _explored(views, shares), reason, top


def weighted_voting(views: Sequence[View], wish: Wish) -> Distribution:
    """Shares that follow given weight, quality, reliability and speed; a new member's stays small."""
    fastest = min(view.strain for view in views) or 1e-9
    weights = []
    for view in views:
        speed = (fastest / max(view.strain, fastest)) ** wish.speed / (1.0 + view.strain**6)
        quality = max(view.quality, 0.01) ** (4.0 * wish.quality)
        weights.append(view.weight * quality * speed * view.reliability**2 * view.met * view.share)
    total = sum(weights)
    if total <= 0.0:
        return _cascade(views, list(range(len(views)))), ChoiceReason.WEIGHTED_VOTING, 0
    shares = _capped(views, [weight / total for weight in weights])
    return shares, ChoiceReason.WEIGHTED_VOTING, shares.index(max(shares))


def best_of_n(views: Sequence[View], wish: Wish) -> Distribution:
    """Everything to the highest expected utility, as far as its ramp allows, then to the next."""
    utilities = [utility(view, wish) for view in views]
    order = sorted(range(len(views)), key=lambda at: (-utilities[at], at))
    order = _tested_first(views, order)
    return _cascade(views, order), ChoiceReason.BEST_OF_N, order[0]


def adaptive(views: Sequence[View], wish: Wish) -> Distribution:
    """Everything to the best member that load leaves room for, as far as its ramp allows, then the next."""
    merits = [_merit(view, wish) for view in views]
    best = max(range(len(views)), key=merits.__getitem__)
    roomy = [at for at, view in enumerate(views) if _has_room(view, wish)]
    roomy.sort(key=lambda at: (-merits[at], views[at].cost, at))
    tight = [at for at in range(len(views)) if at not in roomy] if len(roomy) < len(views) else []
    # Beyond the target the least harm counts: to the request, and to those it shares the device with.
    tight.sort(key=lambda at: (_harm(views[at]), at))
    order = _tested_first(views, roomy) + tight
    spent = order[0] != best and merits[order[0]] < merits[best]
    return (
        _cascade(views, order),
        ChoiceReason.ADAPTIVE_HIGH_LOAD if spent or not roomy else ChoiceReason.ADAPTIVE_LOW_LOAD,
        order[0],
    )


STRATEGIES: Final[Mapping[EnsembleStrategy, Callable[[Sequence[View], Wish], Distribution]]] = (
    MappingProxyType(
        {
            EnsembleStrategy.WEIGHTED_VOTING: weighted_voting,
            EnsembleStrategy.BEST_OF_N: best_of_n,
            EnsembleStrategy.ADAPTIVE: adaptive,
        }
    )
)


def utility(view: View, wish: Wish) -> float:
    """Expected utility in 0..1: reliable, within objectives, and then quality and speed as wished."""
    likely = view.reliability * view.met / (1.0 + view.strain**6)
    return likely * (wish.quality * view.quality + wish.speed / (1.0 + view.strain))


def _merit(view: View, wish: Wish) -> float:
    """What adaptive ranks by: quality, unless the client prefers speed or only the strategy tells load."""
    if wish.preferred:
        return utility(view, wish)
    if not wish.pressed and wish.level > 0:
        speed = 1.0 / (1.0 + view.strain)
        share = 0.5 if wish.level == 1 else 0.0
        return view.reliability * (share * view.quality + (1.0 - share) * speed)
    return view.reliability * view.quality


def _has_room(view: View, wish: Wish) -> bool:
    return view.fill <= wish.target and not view.yields


def _harm(view: View) -> float:
    """What a request does where there is no room: on a shared device everyone pays its cost."""
    return view.fill / view.reliability * (view.cost**2 if view.shared else 1.0)


def _tested_first(views: Sequence[View], order: list[int]) -> list[int]:
    """A new member never leads while a measured one can: it earns its place by exploration."""
    if not order or views[order[0]].measured:
        return order
    tested = [at for at in order if views[at].measured and views[at].share > 0.0]
    return tested + [at for at in order if at not in tested]


def _cascade(views: Sequence[View], order: Sequence[int]) -> list[float]:
    """Each in order takes its share of what is left; the first that takes all ends it."""
    shares = [0.0] * len(views)
    left = 1.0
    for at in order:
        taken = left * views[at].share
        shares[at] = taken
        left -= taken
        if left <= 0.0:
            return shares
    # Everyone is on a ramp: the first takes what is left.
    first = max(order, key=lambda at: views[at].share)
    shares[first] += left
    return shares


def _capped(views: Sequence[View], shares: list[float]) -> list[float]:
    """Members that nobody has measured take `NEW_SHARE` each at most, while a measured one serves."""
    new = [at for at, view in enumerate(views) if not view.measured and shares[at] > NEW_SHARE]
    rest = sum(share for at, share in enumerate(shares) if views[at].measured)
    if not new or rest <= 0.0:
        return shares
    surplus = sum(shares[at] - NEW_SHARE for at in new)
    scale = (rest + surplus) / rest
    capped = [share * scale if views[at].measured else share for at, share in enumerate(shares)]
    for at in new:
        capped[at] = NEW_SHARE
    return capped


def _explored(views: Sequence[View], shares: list[float]) -> list[float]:
    """The shares with a little set aside for members that must be measured again or probed."""
    extra: dict[int, float] = {}
    budget = EXPLORE_MOST
    for at, view in enumerate(views):
        if view.in_flight > 0 or shares[at] >= PROBE_SHARE:
            continue
        if view.probe_due:
            extra[at] = PROBE_SHARE
        elif view.stale and view.share > 0.0 and view.strain <= 1.0 and budget >= EXPLORE_SHARE:
            extra[at] = EXPLORE_SHARE
            budget -= EXPLORE_SHARE
    if not extra:
        return shares
    left = 1.0 - sum(extra.values())
    explored = [share * left for share in shares]
    for at, share in extra.items():
        explored[at] += share
    return explored
