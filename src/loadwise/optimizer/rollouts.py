"""The rollout of each subject: its share now, what was seen of it, and its next step."""

from __future__ import annotations

import secrets
from math import isfinite

import msgspec

from loadwise.decision.improvement import Improvement
from loadwise.decision.rollout import HARMS, Evidence, Mode, Plan, Rollout, RolloutReason, advanced, begun
from loadwise.logs import get_logger
from loadwise.optimizer.assignment import Subject
from loadwise.optimizer.shares import Ramp
from loadwise.optimizer.tallies import Measure, Row, Tallies
from loadwise.ports import Enrolled, JsonObject
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
    # Scores by the step that was left.
    earlier: dict[int, list[Row]] = {}


class _Course:
    """One subject on its way, with what was seen since its present step began.

    Scores come days later, so the steps that were left go on comparing them.
    """

    def __init__(self, plan: Plan, now_s: float) -> None:
        self.plan = plan
        self.rollout: Rollout = begun(plan, now_s)
        self.tallies = Tallies()
        self.earlier: dict[int, Tallies] = {}

    @property
    def step(self) -> int:
        """How many steps it went up; 0 once it was taken back."""
        return sum(share <= self.rollout.share for share in self.plan.steps)

    def compares(self, measure: Measure, step: int) -> Tallies:
        """Where a value of a request of that step counts: an outcome now, a score in its own step."""
        if measure is not Measure.SCORES or step == self.step:
            return self.tallies
        return self.earlier.setdefault(step, Tallies())

    def advance(self, following: Rollout) -> bool:
        """The next state; whether its share is another, so that another step begins."""
        left, before = self.step, self.rollout.share
        self.rollout = following
        if following.share == before:
            return False
        self.earlier[left] = self.tallies.of_scores()
        self.tallies = Tallies()
        return True


class Rollouts:
    """States by subject, made when its first request comes; times are monotonic seconds."""

    def __init__(self, config: OptimizationConfig) -> None:
        self._courses: dict[Subject, _Course] = {}
        # Which no other rollouts have, before or after.
        self.number = secrets.randbits(62)
        self._settings = config.rollout
        self._budget = config.alert_error_rate

    def configure(self, config: OptimizationConfig) -> None:
        """Other settings begin every rollout anew; the same leave them as they are."""
        self._budget = config.alert_error_rate
        if config.rollout != self._settings:
            self._settings = config.rollout
            self._courses.clear()
            self.number = secrets.randbits(62)

    @property
    def idle(self) -> bool:
        """Whether everything is optimised, so that nothing needs to be looked up."""
        settings = self._settings
        return settings.mode is Mode.FULL and not settings.routes and not settings.keys

    def ramp(self, route: str, key: str, now_s: float) -> Ramp:
        """How far the rollout is that a request of that key belongs to."""
        subject = Subject(route, key if key in self._settings.keys else None)
        course = self._courses.get(subject)
        if course is None:
            course = self._courses[subject] = self._begun(subject, now_s)
        return Ramp(course.plan.mode, course.rollout.share, course.step, subject.key)

    def note(self, route: str, unit: str, enrolled: Enrolled, measure: Measure, value: float) -> None:
        """Counts a value of a request that was dispatched in this rollout; of any other nothing."""
        course = self._courses.get(Subject(route, enrolled.key))
        if enrolled.rollout == self.number and course is not None:
            course.compares(measure, enrolled.step).add(measure, unit, value, optimised=enrolled.rolled_out)

    def turn(self, gain: Improvement | None, now_s: float) -> bool:
        """Every rollout is where the evidence lets it be; whether any share changed."""
        moved = False
        for subject, course in self._courses.items():
            if course.advance(advanced(course.plan, course.rollout, _evidence(course, gain), now_s)):
                moved = True
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
                {step: tallies.rows() for step, tallies in course.earlier.items()},
            )
            for subject, course in self._courses.items()
        ]

    def take_up(self, kept: list[Kept], number: int, now_s: float) -> None:
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
                course.earlier = {step: Tallies.of(rows) for step, rows in found.earlier.items()}
        self._courses.update(courses)
        self.number = number

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


def _evidence(course: _Course, gain: Improvement | None) -> Evidence:
    tallies = course.tallies
    answers, errors = tallies.sums(Measure.ERRORS, optimised=True)
    without, errors_without = tallies.sums(Measure.ERRORS, optimised=False)
    return Evidence(
        answers=answers,
        errors=int(errors),
        answers_without=without,
        errors_without=int(errors_without),
        error_share=tallies.compared(Measure.ERRORS),
        scores=[each.compared(Measure.SCORES) for each in (tallies, *course.earlier.values())],
        gain=gain,
    )


def _tell(subject: Subject, rollout: Rollout) -> None:
    tell = log.warning if rollout.reason in HARMS else log.info
    tell("rollout", route=subject.route, key=subject.key, share=rollout.share, reason=rollout.reason.value)
