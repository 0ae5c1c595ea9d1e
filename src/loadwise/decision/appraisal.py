"""What a build that is not there would gain and cost, in numbers that an operator can check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from loadwise.decision.build_facts import (
    EXPECTED,
    UNKNOWN_GAIN,
    BuildFact,
    BuildOption,
    BuildStatus,
    ModelUse,
)

# A build that failed is not tried again before this much time, doubled for each failure.
RETRY_AFTER_S: Final = 600.0
_MINUTE_S, _HOUR_S = 60.0, 3600.0


class Verdict(StrEnum):
    """What is decided of a build that is not there."""

    NEXT = "next"
    AFTER_OTHERS = "after_others"
    BUILDING = "building"
    BUSY = "busy"
    BLOCKED = "blocked"
    RESTING = "resting"
    NOT_WORTH_IT = "not_worth_it"


_BECAUSE: Final[Mapping[Verdict, str]] = {
    Verdict.NEXT: "It is made next.",
    Verdict.AFTER_OTHERS: "Another one is worth more for its cost, or comes first.",
    Verdict.BUILDING: "It is being made.",
    Verdict.BUSY: "It waits for a quiet moment.",
    Verdict.BLOCKED: "It cannot be made now:",
    Verdict.RESTING: "It failed, and is tried again in",
    Verdict.NOT_WORTH_IT: "It is not worth its cost.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """A build that is not there, weighed: what it saves until the model's next likely change, and costs."""

    model_id: str
    mode: str
    # Shares of the original step's time: what the build saves, and what the best build that serves saves.
    gain: float
    served_gain: float
    # Whether this build was measured on this model; otherwise gain and cost are what its kind is expected to.
    measured: bool
    cost_s: float
    # None before the model was observed for long enough.
    use: ModelUse | None
    # Seconds before it is tried again after a failure.
    rest_s: float = 0.0
    # Why it cannot even be tried now, in words.
    obstacle: str = ""
    building: bool = False
    verdict: Verdict = Verdict.AFTER_OTHERS

    @property
    def saves_s(self) -> float | None:
        """Seconds of computing saved until the next likely change; None while use is unknown."""
        if self.use is None:
            return None
        return self.use.busy_fraction * self.use.steady_s * (self.gain - self.served_gain)

    @property
    def worth(self) -> float | None:
        """Seconds saved per second of building; None while use is unknown."""
        return None if self.saves_s is None else self.saves_s / self.cost_s

    @property
    def pays(self) -> bool:
        """Whether it is worth making, as far as is known: for a model of unknown use, unless it is slower."""
        return self.gain >= self.served_gain if self.worth is None else self.worth > 1.0

    @property
    def sentence(self) -> str:
        """The numbers and what follows of them, in words."""
        return f"{self._gain()} {self._use()} {self._verdict()}"

    def _gain(self) -> str:
        more = self.gain - self.served_gain
        than = " more than what serves" if self.served_gain > 0.0 else ""
        known = "measured" if self.measured else "expected"
        saves = f"Saves {more:.0%} of a step{than}" if more > 0.0 else f"Saves nothing{than}"
        return f"{saves} ({known}), for {_span(self.cost_s)} of building."

    def _use(self) -> str:
        if self.use is None or self.saves_s is None:
            return "How much the model is used is not known before an hour of it."
        return (
            f"The model is busy {self.use.busy_fraction:.0%} of the time and likely to stay so for "
            f"{_span(self.use.steady_s)}: {_span(max(0.0, self.saves_s))} saved."
        )

    def _verdict(self) -> str:
        because = _BECAUSE[self.verdict]
        if self.verdict is Verdict.BLOCKED:
            return f"{because} {self.obstacle}."
        return f"{because} {_span(self.rest_s)}." if self.verdict is Verdict.RESTING else because


def appraise(
    model_id: str,
    option: BuildOption,
    builds: Sequence[BuildFact],
    use: ModelUse | None,
    now_s: float,
    *,
    asked: bool = False,
) -> Appraisal:
    """The build of that mode, weighed; what was measured on this model counts before what is expected.

    One that the operator `asked` for is weighed against the original, any other against what serves.
    """
    own = [build for build in builds if build.model_id == model_id]
    this = next((build for build in own if build.mode == option.mode), None)
    serving = None if asked else max((b for b in own if b.serves), key=_served_gain, default=None)
    measured = this is not None and this.gain is not None
    cost_s = option.cost_s if this is None or this.cost_s is None else this.cost_s
    return Appraisal(
        model_id=model_id,
        mode=option.mode,
        gain=this.gain if this is not None and this.gain is not None else _expected(option, serving),
        served_gain=0.0 if serving is None else _served_gain(serving),
        measured=measured,
        # A build of no cost would be worth infinitely much.
        cost_s=max(cost_s, 1e-3),
        use=use,
        rest_s=0.0 if this is None else _rest_s(this, now_s),
        obstacle="" if this is None else this.obstacle,
        building=this is not None and this.status is BuildStatus.BUILDING,
    )


def _expected(option: BuildOption, serving: BuildFact | None) -> float:
    """The option's gain; beside a measured build, in the proportion of what both were expected to."""
    if serving is None or serving.gain is None:
        return option.gain
    assumed = EXPECTED.get(serving.mode, UNKNOWN_GAIN)[0]
    return 1.0 - (1.0 - serving.gain) * (1.0 - option.gain) / (1.0 - assumed)


def _served_gain(build: BuildFact) -> float:
    return EXPECTED.get(build.mode, UNKNOWN_GAIN)[0] if build.gain is None else build.gain


def _rest_s(build: BuildFact, now_s: float) -> float:
    if build.status is not BuildStatus.FAILED:
        return 0.0
    rests_s = RETRY_AFTER_S * 2.0 ** max(0, build.failures - 1)
    return max(0.0, rests_s - (now_s - build.changed_s))


def _span(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    return f"{seconds / _HOUR_S:.1f} h"
