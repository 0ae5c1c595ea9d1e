"""The rows that come with every request, as they lie on disk: facts by their place, without their names.

The names would be half of a row. A field that a fact gets later comes last in it, with a default: older rows
end before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar

import msgspec

from loadwise.decision.candidates import Refusal
from loadwise.decision.choices import Choice, Remembered
from loadwise.decision.facts import MemberPressure, Outcome, Principal, RequestFacts, StrategyName
from loadwise.telemetry.journal import records
from loadwise.telemetry.journal.records import Dispatched, Record, Row

Fact = TypeVar("Fact")
Values = tuple[Any, ...]


class Lean(Generic[Fact]):
    """Facts of one kind, as tuples of their values and back."""

    def __init__(self, kind: type[Fact]) -> None:
        self._kind = kind
        self.names: Final = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        self.values: Callable[[Fact], Values] = attrgetter(*self.names)

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """The values by the names of their fields."""
        return dict(zip(self.names, values, strict=False))

    def whole(self, values: Sequence[Any]) -> Fact:
        """The fact; `msgspec.ValidationError` where the values are none of it."""
        return msgspec.convert(self.named(values), self._kind)


OUTCOMES: Final = Lean(Outcome)
REQUESTS: Final = Lean(RequestFacts)
PRINCIPALS: Final = Lean(Principal)
PRESSURES: Final = Lean(MemberPressure)
# Where a request says who asks.
_PRINCIPAL: Final = REQUESTS.names.index("principal")


class Ended(Row, frozen=True, tag="e"):
    """`records.Ended`."""

    outcome: Values
    policy: int | None
    learned: bool
    started_s: float | None
    strategy: StrategyName | None
    within: bool | None


class Decided(Row, frozen=True, tag="d"):
    """`records.Decided`."""

    request: Values
    pressures: tuple[Values, ...]
    policy: int
    route: int
    strategy: int | None
    members: tuple[str, ...]
    draw: float
    now_s: float
    remembered: Remembered | None
    excluded: frozenset[str]
    control: bool
    choice: Choice | Refusal
    dispatched: Dispatched | None


# What is written of both as it is.
_OF_ENDED: Final = attrgetter(*Ended.__struct_fields__[1:])
_OF_DECIDED: Final = attrgetter(*Decided.__struct_fields__[2:])
_DECODER: Final = msgspec.msgpack.Decoder(list[Record | Ended | Decided])


def encoded(rows: Sequence[Record]) -> bytes:
    """A body of rows; `TypeError`, `ValueError` or `OverflowError` for what none can hold."""
    return records.ENCODER.encode([_SHORT.get(type(row), _as_it_is)(row) for row in rows])


def _as_it_is(row: Any) -> Row:
    found: Row = row
    return found


def _ended(row: records.Ended) -> Row:
    return Ended(OUTCOMES.values(row.outcome), *_OF_ENDED(row))


def _decided(row: records.Decided) -> Row:
    pressures = tuple([PRESSURES.values(each) for each in row.pressures])
    return Decided(_asked(row.request), pressures, *_OF_DECIDED(row))


_SHORT: Final[Mapping[type, Callable[[Any], Row]]] = {records.Ended: _ended, records.Decided: _decided}


def _asked(request: RequestFacts) -> Values:
    values = REQUESTS.values(request)
    return (*values[:_PRINCIPAL], PRINCIPALS.values(request.principal), *values[_PRINCIPAL + 1 :])


def decoded(body: bytes) -> list[Record]:
    """The rows of a body, whole again; `msgspec.MsgspecError` for what is none."""
    return [_whole(row) for row in _DECODER.decode(body)]


def _whole(row: Record | Ended | Decided) -> Record:
    match row:
        case Ended():
            return records.Ended(OUTCOMES.whole(row.outcome), *_OF_ENDED(row))
        case Decided():
            asked = REQUESTS.named(row.request)
            asked["principal"] = PRINCIPALS.named(asked["principal"])
            return records.Decided(
                request=msgspec.convert(asked, RequestFacts),
                pressures=tuple([PRESSURES.whole(each) for each in row.pressures]),
                **{name: getattr(row, name) for name in Decided.__struct_fields__[2:]},
            )
    return row
