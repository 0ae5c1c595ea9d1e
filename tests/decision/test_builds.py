"""Which build is made, which one serves, and in numbers why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from loadwise.decision.appraisal import Verdict
from loadwise.decision.build_facts import BuildFact, BuildOption, BuildStatus, ModelUse
from loadwise.decision.builds import BuildPlan, BuildReason, plan, served_mode

from .build import POLICY, at_load

QUIET, BUSY = at_load(0.1), at_load(0.95)


def ready(mode: str, model: str = "m", **changes: bool) -> BuildFact:
    return BuildFact(model_id=model, mode=mode, status=BuildStatus.READY, **changes)


def test_mode_follows_load_and_the_best_built_one_stands_in() -> None:
    built = [ready("default"), ready("max-autotune")]
    assert plan(POLICY, BUSY, ["m"], built, 0.0).serve == {"m": "max-autotune"}
    assert plan(POLICY, QUIET, ["m"], built, 0.0).serve == {"m": "default"}
    assert plan(POLICY, BUSY, ["m"], built[:1], 0.0).serve == {"m": "default"}
    assert plan(POLICY, BUSY, ["m"], [], 0.0).serve == {"m": "original"}
    assert served_mode("own-mode", "m", {("m", "own-mode"): None}) == "own-mode"


def test_stale_builds_do_not_serve() -> None:
    found = plan(POLICY, QUIET, ["m"], [ready("default", stale=True)], 0.0)
    assert (found.serve, found.make) == ({"m": "original"}, ("m", "default"))


def test_builds_are_made_one_at_a_time_in_quiet_moments_cheapest_first() -> None:
    assert plan(POLICY, QUIET, ["m", "n"], [], 0.0).make == ("m", "default")
    assert plan(POLICY, QUIET, ["m"], [ready("default")], 0.0).make == ("m", "max-autotune")
    assert plan(POLICY, BUSY, ["m"], [], 0.0).reason is BuildReason.BUSY
    assert plan(POLICY, at_load(None), ["m"], [], 0.0).reason is BuildReason.BUSY
    going = [BuildFact(model_id="n", mode="default", status=BuildStatus.BUILDING)]
    assert plan(POLICY, QUIET, ["m", "n"], going, 0.0).reason is BuildReason.BUILDING
    assert (
        plan(POLICY, QUIET, ["m"], [ready("default"), ready("max-autotune")], 0.0).reason
        is BuildReason.COMPLETE
    )
    assert plan(POLICY, QUIET, ["m"], [], 0.0, enabled=False).reason is BuildReason.DISABLED


def test_failed_builds_rest_longer_after_each_failure() -> None:
    broken = BuildFact(model_id="m", mode="default", status=BuildStatus.FAILED, failures=2)
    autotuned = ready("max-autotune")
    assert plan(POLICY, QUIET, ["m"], [broken, autotuned], 1199.0).reason is BuildReason.WAITING_AFTER_FAILURE
    assert plan(POLICY, QUIET, ["m"], [broken, autotuned], 1200.0).make == ("m", "default")


def building(mode: str = "default", **changes: bool) -> BuildFact:
    return BuildFact(model_id="m", mode=mode, status=BuildStatus.BUILDING, **changes)


def test_build_in_progress_is_given_up_when_load_returns_unless_it_was_forced() -> None:
    assert plan(POLICY, BUSY, ["m"], [building()], 0.0).cancel
    assert not plan(POLICY, BUSY, ["m"], [building(forced=True)], 0.0).cancel
    assert not plan(POLICY, QUIET, ["m"], [building()], 0.0).cancel
    assert not plan(POLICY, BUSY, ["m"], [], 0.0).cancel


def test_fastest_build_serves_whichever_backend_made_it() -> None:
    built = [
        BuildFact(model_id="m", mode="default", status=BuildStatus.READY, step_s=0.004),
        BuildFact(model_id="m", mode="openvino", status=BuildStatus.READY, step_s=0.003),
    ]
    assert plan(POLICY, QUIET, ["m"], built, 0.0).serve == {"m": "openvino"}
    slower = [built[0], BuildFact(model_id="m", mode="openvino", status=BuildStatus.READY, step_s=0.005)]
    assert plan(POLICY, QUIET, ["m"], slower, 0.0).serve == {"m": "default"}
    assert plan(POLICY, QUIET, ["m"], built[1:], 0.0).serve == {"m": "openvino"}


OPTIONS = [BuildOption("default", 0.25, 60.0), BuildOption("openvino", 0.5, 30.0)]


def test_build_that_saves_most_for_its_cost_is_made_first() -> None:
    uses = {"m": ModelUse(busy_fraction=0.5, steady_s=86_400.0)}
    found = plan(POLICY, QUIET, ["m"], [], 0.0, options=OPTIONS, uses=uses)
    assert found.make == ("m", "openvino")
    weighed = {one.mode: one for one in found.appraisals}
    assert weighed["openvino"].worth == pytest.approx(720.0)
    assert weighed["openvino"].saves_s == pytest.approx(21_600.0)
    busier = {**uses, "n": ModelUse(busy_fraction=0.9, steady_s=86_400.0)}
    assert plan(POLICY, QUIET, ["m", "n"], [], 0.0, options=OPTIONS, uses=busier).make == ("n", "openvino")


def test_model_that_is_hardly_used_is_not_worth_a_build_and_one_of_unknown_use_is() -> None:
    uses = {"m": ModelUse(busy_fraction=0.001, steady_s=3600.0)}
    found = plan(POLICY, QUIET, ["m"], [], 0.0, options=OPTIONS, uses=uses)
    assert (found.make, found.reason) == (None, BuildReason.NOT_WORTH_IT)
    assert plan(POLICY, QUIET, ["m"], [], 0.0, options=OPTIONS).make == ("m", "default")


# --- why, in numbers -----------------------------------------------------------------------------

DAY_S = 86_400.0
BUSY_HALF = {"m": ModelUse(busy_fraction=0.5, steady_s=DAY_S)}


def weighed(found: BuildPlan) -> dict[str, Any]:
    return {one.mode: one for one in found.appraisals}


def measured(mode: str, gain: float, cost_s: float = 50.0, **changes: Any) -> BuildFact:
    values: dict[str, Any] = {
        "status": BuildStatus.READY,
        "step_s": 1.0 - gain,
        "gain": gain,
        "cost_s": cost_s,
    }
    return BuildFact(model_id="m", mode=mode, **values | changes)


def test_what_was_measured_on_a_model_counts_before_what_is_expected() -> None:
    slower = measured("default", -0.10, status=BuildStatus.FAILED, failures=1)
    found = plan(POLICY, QUIET, ["m"], [slower], 1e9, uses=BUSY_HALF)
    one = weighed(found)["default"]
    assert (one.measured, one.cost_s, one.verdict) == (True, 50.0, Verdict.NOT_WORTH_IT)
    assert found.make == ("m", "max-autotune")
    assert one.sentence.startswith("Saves nothing (measured), for 50 s of building.")


def test_slower_build_is_not_made_again_however_long_it_rested_and_whatever_the_use() -> None:
    slower = [measured(mode, -0.1, status=BuildStatus.FAILED) for mode in ("default", "max-autotune")]
    found = plan(POLICY, QUIET, ["m"], slower, 1e9)
    assert (found.make, found.reason) == (None, BuildReason.NOT_WORTH_IT)


def test_build_is_weighed_against_what_serves_not_against_the_original() -> None:
    found = plan(POLICY, QUIET, ["m"], [measured("default", 0.5)], 0.0, uses=BUSY_HALF)
    one = weighed(found)["max-autotune"]
    # Half of the step is left; expected were 0.70 of the original beside 0.75.
    assert one.gain == pytest.approx(1.0 - 0.5 * 0.70 / 0.75)
    assert one.served_gain == 0.5
    assert one.saves_s == pytest.approx(0.5 * DAY_S * (one.gain - 0.5))
    assert "more than what serves (expected)" in one.sentence


def test_mode_that_the_operator_configured_is_weighed_against_the_original() -> None:
    policy = replace(POLICY, compile_mode="reduce-overhead")
    found = plan(policy, QUIET, ["m"], [measured("default", 0.5)], 0.0, uses=BUSY_HALF)
    assert found.make == ("m", "reduce-overhead")


def test_every_build_that_is_not_there_says_what_is_decided_of_it() -> None:
    failed = BuildFact(model_id="m", mode="default", status=BuildStatus.FAILED, failures=1)
    blocked = BuildFact(
        model_id="m", mode="openvino", status=BuildStatus.FAILED, failures=1, obstacle="switched off"
    )
    found = plan(POLICY, QUIET, ["m"], [failed, blocked], 100.0, options=OPTIONS, uses=BUSY_HALF)
    said = {mode: one.sentence for mode, one in weighed(found).items()}
    assert said["default"].endswith("It failed, and is tried again in 8 min.")
    assert said["openvino"].endswith("It cannot be made now: switched off.")
    assert said["max-autotune"] == (
        "Saves 30% of a step (expected), for 10 min of building. The model is busy 50% of the time "
        "and likely to stay so for 24.0 h: 3.6 h saved. It is made next."
    )
    assert found.make == ("m", "max-autotune")


def test_plan_says_in_words_which_load_keeps_builds_waiting() -> None:
    found = plan(POLICY, BUSY, ["m"], [], 0.0)
    assert found.because.startswith(
        "The load is 0.95 and the strategy performance: builds begin in quiet moments"
    )
    assert "below 0.3" in found.because
    assert {one.verdict for one in found.appraisals} == {Verdict.BUSY}
    assert "not known before an hour" in found.appraisals[0].sentence
    unknown = plan(POLICY, at_load(None), ["m"], [], 0.0)
    assert unknown.because.startswith("The load is not known")


def test_build_in_progress_is_told_beside_those_that_wait_for_it() -> None:
    found = plan(POLICY, QUIET, ["m"], [building()], 0.0)
    verdicts = {mode: one.verdict for mode, one in weighed(found).items()}
    assert verdicts == {"default": Verdict.BUILDING, "max-autotune": Verdict.AFTER_OTHERS}


@pytest.mark.parametrize(
    ("builds", "enabled", "because"),
    [
        ([], False, "enable_torch_compile is false."),
        ([ready("default"), ready("max-autotune")], True, "Every build"),
    ],
)
def test_plan_that_makes_nothing_says_why(builds: list[BuildFact], enabled: bool, because: str) -> None:
    assert plan(POLICY, QUIET, ["m"], builds, 0.0, enabled=enabled).because.startswith(because)
