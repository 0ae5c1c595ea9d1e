"""The members that exist, their engines and models, and which of them each route uses now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from loadwise.decision.facts import EnsembleStrategy, Member, Objectives, Replica, Route
from loadwise.errors import CapacityError, ConfigurationError, UnknownNameError
from loadwise.ports import Engine
from loadwise.settings import OptimizationConfig, RouteSettings

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberParts:
    """A member with what answers for it: its replicas' engines, or a model object in the library."""

    member: Member
    # By replica id; empty in the library.
    engines: Mapping[str, Engine] = field(default_factory=dict)
    model: Any = None
    # Waits for a place, also when there is one.
    standby: bool = False
    # Which engine serves it ("openvino", "torch", "openai_http") and why that one.
    engine_kind: str | None = None
    engine_reason: str | None = None


class _RouteBook:
    """One route's members in order of preference; the first places are active."""

    def __init__(self, name: str, settings: RouteSettings | None) -> None:
        self.name = name
        self.settings = settings
        self.order: list[str] = []
        self.waiting: set[str] = set()

    def default_member(self, parts: Mapping[str, MemberParts], config: OptimizationConfig) -> str:
        wanted = (self.settings and self.settings.default_member) or config.default_member
        if wanted in self.order:
            return str(wanted)
        ready = [name for name in self.order if name not in self.waiting] or self.order
        return reduce(lambda best, name: name if _better(parts, name, best) else best, ready)

    def active(self, default: str, config: OptimizationConfig) -> list[str]:
        others = [name for name in self.order if name != default and name not in self.waiting]
        kept = {default, *others[: config.max_ensemble_size - 1]}
        return [name for name in self.order if name in kept]


class Fleet:
    """Members and routes; `routes` is rebuilt when something changes, and only read by requests."""

    def __init__(self, config: OptimizationConfig, routes: Mapping[str, RouteSettings] | None = None) -> None:
        self._config = config
        self._parts: dict[str, MemberParts] = {}
        self._books = {name: _RouteBook(name, settings) for name, settings in (routes or {}).items()}
        self._books.setdefault(AUTO, _RouteBook(AUTO, None))
        self.routes: dict[str, Route] = {}
        # Per member the route that answers when it is named; of one that stands by, a route of its own.
        self._named: dict[str, Route] = {}

    # --- what there is ---

    def __contains__(self, member_id: object) -> bool:
        return member_id in self._parts

    def __iter__(self) -> Any:
        return iter(self._parts)

    def parts(self, member_id: str) -> MemberParts:
        """A member's parts, or `UnknownNameError`."""
        try:
            return self._parts[member_id]
        except KeyError:
            known = ", ".join(self._parts) or "none yet"
            raise UnknownNameError(f"There is no member {member_id!r}. Known: {known}.") from None

    def route_of(self, model: str) -> Route | None:
        """The route of a public name: a route's own, or one that has the member; None if unknown."""
        return self.routes.get(model) or self._named.get(model)

    def everyone(self) -> Route | None:
        """All members, active or not, as one route; None while there is none."""
        first = self.routes.get(AUTO) or next(iter(self.routes.values()), None)
        if first is None:
            return None
        return replace(first, members=tuple(parts.member for parts in self._parts.values()))

    def engines(self) -> dict[str, Engine]:
        """Every replica's engine, by replica id, of active and stand-by members."""
        return {name: engine for parts in self._parts.values() for name, engine in parts.engines.items()}

    def active(self, route: str = AUTO) -> tuple[str, ...]:
        """The members that answer a route, in order."""
        found = self.routes.get(route)
        return () if found is None else tuple(member.member_id for member in found.members)

    def is_active(self, member_id: str) -> bool:
        """Whether any route uses the member."""
        return any(member_id in self.active(name) for name in self.routes)

    def standby(self, route: str = AUTO) -> tuple[str, ...]:
        """Members admitted to a route that wait for a place, in order."""
        active = self.active(route)
        return tuple(name for name in self._books[route].order if name not in active)

    # --- changing it ---

    def add(self, parts: MemberParts) -> None:
        """The member is known; it is active on its routes where there is a place, else it stands by."""
        member_id = parts.member.member_id
        if member_id in self._parts:
            raise ConfigurationError(
                f"There is a member {member_id!r} already; names differ.", field="model_id"
            )
        if member_id in self._books:
            raise ConfigurationError(
                f"{member_id!r} is a route's name; a member needs another.", field="model_id"
            )
        if not parts.member.replicas:
            raise ConfigurationError(f"{member_id!r} has no replica; a member needs at least one.")
        self._parts[member_id] = parts
        for book in self._books_of(member_id):
            book.order.append(member_id)
            if parts.standby:
                book.waiting.add(member_id)
        self.rebuild()

    def _books_of(self, member_id: str) -> list[_RouteBook]:
        tags = self._parts[member_id].member.tags
        listed = [b for b in self._books.values() if b.settings and _answers(b.settings, member_id, tags)]
        auto = self._books[AUTO]
        if auto.settings is None and auto not in listed:
            listed.append(auto)
        return listed

    def admit(self, member_id: str, route: str = AUTO) -> None:
        """The member is active on the route; `CapacityError` when the ensemble is full."""
        self.parts(member_id)
        if member_id in self.active(route):
            return
        self.require_place(route)
        book = self._books[route]
        if member_id in book.order:
            book.order.remove(member_id)
        # Before those that stand by, so that the free place is its own.
        book.order.insert(len(self.active(route)), member_id)
        waiting = [name for name in book.order if name in book.waiting]
        book.waiting.discard(member_id)
        book.order.sort(key=lambda name: name in waiting and name != member_id)
        self.rebuild()

    def require_place(self, route: str = AUTO) -> None:
        """Raises `CapacityError` naming max_ensemble_size when no further member fits."""
        size = self._config.max_ensemble_size
        if len(self.active(route)) >= size:
            raise CapacityError(
                f"The ensemble is full: max_ensemble_size is {size} and {', '.join(self.active(route))} "
                "are active. Raise max_ensemble_size or remove a member."
            )

    def update(self, member_id: str, **changes: Any) -> None:
        """Changes fields of the member's facts, for example its weight."""
        parts = self.parts(member_id)
        self._parts[member_id] = replace(parts, member=replace(parts.member, **changes))
        self.rebuild()

    def remove(self, member_id: str) -> MemberParts:
        """The member is unknown from now on; what it was made of is returned to be closed."""
        parts = self.parts(member_id)
        del self._parts[member_id]
        for book in self._books.values():
            book.order = [name for name in book.order if name != member_id]
            book.waiting.discard(member_id)
        self.rebuild()
        return parts

    def configure(self, config: OptimizationConfig, utility: Callable[[str], float]) -> None:
        """Applies a configuration; a smaller size retires the members of lowest utility."""
        lowered = config.max_ensemble_size < self._config.max_ensemble_size
        if lowered:
            for name, book in self._books.items():
                active = set(self.active(name))
                book.order.sort(key=lambda m, on=active: -utility(m) if m in on else float("inf"))  # type: ignore[misc]
        self._config = config
        self.rebuild()

    def rebuild(self) -> None:
        """Makes `routes` anew from members and configuration."""
        self.routes = {name: self._route(book) for name, book in self._books.items() if book.order}
        self._named = {}
        for name, parts in self._parts.items():
            using = [route for route in self.routes.values() if parts.member in route.members]
            some = next(iter(self.routes.values()), Route(name=AUTO, members=(), default_member=name))
            alone = replace(some, members=(parts.member,), default_member=name)
            self._named[name] = using[0] if using else alone

    def _route(self, book: _RouteBook) -> Route:
        config, settings = self._config, book.settings
        default = book.default_member(self._parts, config)
        objectives = (settings and settings.objectives) or config.objectives
        floor = None if settings is None else settings.quality_floor
        strategy: EnsembleStrategy = (settings and settings.ensemble_strategy) or config.ensemble_strategy
        return Route(
            name=book.name,
            members=tuple(self._parts[name].member for name in book.active(default, config)),
            default_member=default,
            objectives=Objectives(**objectives.model_dump()),
            strategy=strategy,
            quality_floor=config.quality_floor if floor is None else floor,
            allow_degrade=config.allow_degrade,
            price_weight=0.0 if settings is None else settings.price_weight,
        )


def _better(parts: Mapping[str, MemberParts], name: str, other: str) -> bool:
    """Whether a member is known to be of higher quality: of two that nobody compared, the first stays."""
    quality, others = parts[name].member.quality, parts[other].member.quality
    return quality is not None and others is not None and quality > others


def _answers(route: RouteSettings, member_id: str, tags: frozenset[str]) -> bool:
    """Whether a route has the member: named, or no names, and its tags allow it."""
    return (not route.members or member_id in route.members) and route.rule.allows(tags)


def single(member_id: str, *, quality: float | None, weight: float, pool_id: str = "local") -> Member:
    """A member with one replica in this process, as the library adds them."""
    replicas: Sequence[Replica] = (Replica(replica_id=f"{member_id}/0", pool_id=pool_id),)
    return Member(member_id=member_id, replicas=tuple(replicas), quality=quality, weight=weight)
