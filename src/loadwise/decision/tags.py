"""Tags that members carry, and what routes and keys ask of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRule:
    """Allows members that carry every tag of `require` and none of `forbid`."""

    require: frozenset[str] = frozenset()
    forbid: frozenset[str] = frozenset()

    def allows(self, tags: frozenset[str]) -> bool:
        """Whether a member with these tags may answer."""
        return self.require <= tags and not self.forbid & tags

    def __bool__(self) -> bool:
        """Whether it asks for anything."""
        return bool(self.require or self.forbid)


ANY_TAGS: Final = TagRule()
