"""The rollout of each subject: its share now, what was seen of it, and its next step."""

from __future__ import annotations

from math import isfinite
from typing import NamedTuple

import msgspec

from loadwise.decision.improvement import Improvement
from loadwise.decision.rollout import HARMS, Evidence, Mode, Plan, Rollout, RolloutReason, advanced, begun
from loadwise.decision.schedule import drawn
from loadwise.logs import get_logger
from loadwise.optimizer.assignment import Held, Subject
from loadwise.optimizer.tallies import Measure, Row, Tallies
from loadwise.ports import JsonObject
from loadwise.settings import OptimizationConfig

log = get_logger(__name__)


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """A subject's rollout as it is kept; the time that no process ran does not count towards a step."""

    subject: Subject
    share: float
    seconds: float
    reason: RolloutReason
    harm: RolloutReason | None
    rows: list[Row]


class _Course:
    """One subject on its way, with what was seen since its present step began."""

    def __init__(self, plan: Plan, now_s: float) -> None:
        self.plan = plan
        self.rollout: Rollout = begun(plan, now_s)
        self.tallies = Tallies()


class Shared(NamedTuple):
    """A request's part in a rollout."""

    subject: Subject
    held: Held | None


class Rollouts:
    """States by subject, made when its first request comes; times are monotonic seconds."""

    def __init__(self, config: OptimizationConfig) -> None:
        self._courses: dict[Subject, _Course] = {}
        self._settings = config.rollout
        self._budget = config.alert_error_rate

    def configure(self, config: OptimizationConfig) -> None:
        """Other settings begin every rollout anew; the same leave them as they are."""
        self._budget = config.alert_error_rate
        if config.rollout != self._settings:
            self._settings = config.rollout
            self._courses.clear()

    @property
    def idle(self) -> bool:
        """Whether everything is optimised, so that nothing needs to be looked up."""
        settings = self._settings
        return settings.mode is Mode.FULL and not settings.routes and not settings.keys

    def share(self, route: str, key: str, unit: str, now_s: float) -> Shared:
        """Whether a request of `key` is optimised; the same for all requests of one unit at one share."""
        subject = Subject(route, key if key in self._settings.keys else None)
        course = self._courses.get(subject)
        if course is None:
            course = self._courses[subject] = self._begun(subject, now_s)
        if course.plan.mode is Mode.ADVISORY:
            return Shared(subject, Held.ADVISORY)
        share = course.rollout.share
        within = share >= 1.0 or drawn(f"rollout:{route}", unit) < share
        return Shared(subject, None if within else Held.ROLLOUT)

    def note(self, subject: Subject, unit: str, measure: Measure, value: float, *, optimised: bool) -> None:
        """Counts a value of a request that was dispatched in this rollout."""
        course = self._courses.get(subject)
        if course is not None and course.plan.mode is Mode.RAMP:
            course.tallies.add(measure, unit, value, optimised=optimised)

    def turn(self, gain: Improvement | None, now_s: float) -> bool:
        """Every rollout is where the evidence lets it be; whether any share changed."""
        moved = False
        for subject, course in self._courses.items():
            before = course.rollout
            course.rollout = advanced(course.plan, before, _evidence(course.tallies, gain), now_s)
            if course.rollout.share != before.share:
                moved = True
                course.tallies = Tallies()
                _tell(subject, course.rollout)
        return moved

    # --- what outlives the process ---

    def kept(self, now_s: float) -> list[Kept]:
        """Every subject's state, and what was seen since its step began."""
        return [
            Kept(
                subject,
                course.rollout.share,
                # Whole seconds, so that what stands still is not written again and again.
                float(int(now_s - course.rollout.since_s)) if course.plan.mode is Mode.RAMP else 0.0,
                course.rollout.reason,
                course.rollout.harm,
                course.tallies.rows(),
            )
            for subject, course in self._courses.items()
        ]

    def take_up(self, kept: list[Kept], now_s: float) -> None:
        """The rollouts of an earlier process go on under the same settings; `ValueError` for wrong values."""
        courses = {}
        for found in kept:
            if not (0.0 <= found.share <= 1.0 and isfinite(found.seconds) and found.seconds >= 0.0):
                raise ValueError(f"no state of a rollout: {found!r}")
            course = courses[found.subject] = self._begun(found.subject, now_s)
            if course.plan.mode is Mode.RAMP:
                course.rollout = Rollout(
                    share=found.share,
                    since_s=now_s - found.seconds,
                    reason=found.reason,
                    harm=found.harm,
                )
                course.tallies = Tallies.of(found.rows)
        self._courses.update(courses)

    # --- what is shown ---

    def as_json(self, now_s: float) -> list[JsonObject]:
        """Every subject that had a request, with its share, why, and for how long."""
        return [
            {
                "route": subject.route,
                "key": subject.key,
                "mode": course.plan.mode.value,
                "share": course.rollout.share,
                "reason": course.rollout.reason.value,
                "harm": None if course.rollout.harm is None else course.rollout.harm.value,
                "seconds": now_s - course.rollout.since_s,
            }
            for subject, course in self._courses.items()
        ]

    def _begun(self, subject: Subject, now_s: float) -> _Course:
        settings = self._settings
        mode = settings.routes.get(subject.route, settings.mode)
        if subject.key is not None:
            mode = settings.keys.get(subject.key, mode)
        return _Course(settings.plan(mode, self._budget), now_s)


def _evidence(tallies: Tallies, gain: Improvement | None) -> Evidence:
    answers, errors = tallies.sums(Measure.ERRORS, optimised=True)
    without, errors_without = tallies.sums(Measure.ERRORS, optimised=False)
    return Evidence(
        answers=answers,
        errors=int(errors),
        answers_without=without,
        errors_without=int(errors_without),
        error_share=tallies.compared(Measure.ERRORS),
        scores=tallies.compared(Measure.SCORES),
        gain=gain,
    )


def _tell(subject: Subject, rollout: Rollout) -> None:
    tell = log.warning if rollout.reason in HARMS else log.info
    tell("rollout", route=subject.route, key=subject.key, share=rollout.share, reason=rollout.reason.value)
