"""Values that are made at every request: what Python checks of them costs more than what they hold."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

__all__ = ["Word", "fact", "new"]

if TYPE_CHECKING:
    # To the type checker, which finds every assignment to a field, a frozen dataclass like others.
    from dataclasses import dataclass as fact
else:
    from dataclasses import dataclass

    def fact(**options: Any) -> Any:
        """A dataclass with these options, filled without the checks at run time that `frozen` costs."""
        return dataclass(**{**options, "frozen": False, "unsafe_hash": True})


class Word(StrEnum):
    """An enumeration of texts that are looked up at every request: hashed as the text that it is."""

    # An `Enum` hashes its name, by a call of Python.
    __hash__ = str.__hash__


# `new(Choice, (member_id, ...))` is what `Choice(member_id, ...)` does, at a third of its cost.
new: Final = tuple.__new__
