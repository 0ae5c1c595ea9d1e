"""Settings of what proves optimisation and brings it in: experiments and rollout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from loadwise.decision.rollout import Mode, Plan
from loadwise.decision.schedule import LONGEST_STRATUM, Schedule
from loadwise.errors import ConfigurationError
from loadwise.settings.checked import Checked, Fraction, Positive

# Without a setting of its own, the burn-in is this part of a block.
BURN_IN: float = 0.2
Share = Annotated[float, Field(ge=0.0, le=0.5, allow_inf_nan=False)]


class ExperimentSettings(Checked):
    """How much of time and of conversations goes without optimisation, to measure what it gains."""

    # Share of blocks of time: 0 measures nothing, else 0.01 to 0.5.
    block_share: Share = 0.1
    block_sec: Annotated[float, Field(ge=1.0, le=86_400.0)] = 600.0
    # The first seconds of each block are not compared; None: a fifth of the block.
    burn_in_sec: Annotated[float, Field(ge=0.0, le=86_400.0)] | None = None
    # Share of conversations, for errors and quality.
    conversation_share: Share = 0.01
    # Unoptimised blocks end at once from this load score on.
    suspend_at_load: Fraction = 0.95
    # Another seed orders the blocks otherwise and draws other conversations.
    seed: int = 0

    @model_validator(mode="after")
    def _measurable(self) -> ExperimentSettings:
        least = 1.0 / LONGEST_STRATUM
        if 0.0 < self.block_share < least:
            raise ConfigurationError(
                f"block_share must be 0 (off) or {least:g}..0.5, not {self.block_share:g}",
                field="block_share",
            )
        if self.burn_in_sec is not None and self.burn_in_sec >= self.block_sec:
            raise ConfigurationError(
                f"burn_in_sec ({self.burn_in_sec:g}) must be below block_sec ({self.block_sec:g})",
                field="burn_in_sec",
            )
        return self

    def schedule(self) -> Schedule:
        """The blocks as plain data for the core."""
        burn_in_s = BURN_IN * self.block_sec if self.burn_in_sec is None else self.burn_in_sec
        return Schedule(block_s=self.block_sec, burn_in_s=burn_in_s, share=self.block_share, seed=self.seed)


class RolloutSettings(Checked):
    """How far optimisation may go: `full`, `advisory` (decide and say, change nothing), or `ramp`."""

    mode: Mode = Mode.FULL
    # By route name and by key id; a key's wins over a route's, and both over `mode`.
    routes: Mapping[str, Mode] = Field(default_factory=dict)
    keys: Mapping[str, Mode] = Field(default_factory=dict)
    # Shares of traffic that a ramp goes through, ascending to 1.
    steps: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.01, 0.05, 0.25, 0.5, 1.0)
    # Each step holds at least so long, and for so many optimised answers.
    step_sec: Positive = 3600.0
    step_requests: Annotated[int, Field(ge=1)] = 200
    # Raise it to begin anew after optimisation was taken back.
    attempt: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _ascending(self) -> RolloutSettings:
        ascending = all(before < after for before, after in zip(self.steps, self.steps[1:], strict=False))
        if not ascending or self.steps[0] <= 0.0 or self.steps[-1] != 1.0:
            raise ConfigurationError(
                f"steps must ascend from above 0 to 1, not {', '.join(f'{step:g}' for step in self.steps)}",
                field="steps",
            )
        return self

    def plan(self, mode: Mode, error_budget: float) -> Plan:
        """The rollout of one subject as plain data for the core; `error_budget` is a share of failures."""
        return Plan(
            mode=mode,
            steps=self.steps,
            step_s=self.step_sec,
            requests=self.step_requests,
            error_budget=error_budget,
        )
