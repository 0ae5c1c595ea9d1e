"""What an operator says of a member beside where it is: price, limits, tags."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Annotated

from pydantic import Field, model_validator

from loadwise.decision.limits import NO_LIMITS, Limits
from loadwise.decision.price import Price
from loadwise.decision.tags import TagRule
from loadwise.errors import ConfigurationError
from loadwise.settings.checked import Checked

NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
AtLeastOne = Annotated[int, Field(ge=1)]
Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/=-]{0,63}$")]


class PriceSettings(Checked):
    """Price of a million tokens, in a currency of the operator's: the same for all members."""

    input_per_million: NotNegative
    output_per_million: NotNegative
    # Of prompt tokens that the server had in its cache; None: as the others.
    cached_input_per_million: NotNegative | None = None

    def price(self) -> Price:
        """The same for the core."""
        return Price(**self.model_dump())


class LimitSettings(Checked):
    """What a member may be asked for, all its replicas together; None is unlimited."""

    requests_per_minute: AtLeastOne | None = None
    # Of prompts and answers together.
    tokens_per_minute: AtLeastOne | None = None
    max_concurrent_requests: AtLeastOne | None = None
    max_context_tokens: AtLeastOne | None = None

    def limits(self) -> Limits:
        """The same for the core; none at all is always the very same."""
        found = Limits(**self.model_dump())
        return NO_LIMITS if found == NO_LIMITS else found


class TermSettings(Checked):
    """A member's price, limits and tags."""

    price: PriceSettings | None = None
    limits: LimitSettings = LimitSettings()
    tags: frozenset[Tag] = frozenset()


class TagRuleSettings(Checked):
    """Which members may answer: those with all of `require_tags` and none of `forbid_tags`."""

    require_tags: frozenset[Tag] = frozenset()
    forbid_tags: frozenset[Tag] = frozenset()

    @model_validator(mode="after")
    def _can_be_kept(self) -> TagRuleSettings:
        both = sorted(self.require_tags & self.forbid_tags)
        if both:
            raise ConfigurationError(
                f"forbid_tags names {both[0]!r}, which require_tags names too; no member could answer.",
                field="forbid_tags",
            )
        return self

    @property
    def rule(self) -> TagRule:
        """The same for the core."""
        return TagRule(require=self.require_tags, forbid=self.forbid_tags)


def require_allowed(rule: TagRule, where: str, named: Mapping[str, Set[str]]) -> None:
    """Raises `ConfigurationError` for the first of the `named` members (with tags) that it keeps out."""
    for member, tags in named.items():
        if not rule.allows(frozenset(tags)):
            missing, extra = sorted(rule.require - tags), sorted(rule.forbid & tags)
            reason = f"lacks the tag {missing[0]!r}" if missing else f"has the tag {extra[0]!r}"
            raise ConfigurationError(
                f"{where}.members names {member!r}, which {reason} that {where} "
                f"{'requires' if missing else 'forbids'}. Change its tags, or leave it out.",
                field=f"{where}.members",
            )


def require_any(rule: TagRule, where: str, tagged: Mapping[str, Set[str]]) -> None:
    """Raises `ConfigurationError` where none of all members (with tags) satisfies the rule."""
    if rule and not any(rule.allows(frozenset(tags)) for tags in tagged.values()):
        known = sorted({tag for tags in tagged.values() for tag in tags})
        raise ConfigurationError(
            f"{where}: no member has the tags it asks for. Tags in use: {', '.join(known) or 'none'}.",
            field=where,
        )
