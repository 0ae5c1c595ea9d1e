"""Members and routes: who answers, who stands by, who gives way."""

from __future__ import annotations

import pytest

from loadwise.errors import CapacityError, ConfigurationError, UnknownNameError
from loadwise.optimizer.fleet import Fleet, MemberParts, single
from loadwise.settings import OptimizationConfig, RouteSettings


def fleet(size: int = 3, *, routes: dict[str, RouteSettings] | None = None, **config: object) -> Fleet:
    made = Fleet(OptimizationConfig(max_ensemble_size=size, **config), routes)  # type: ignore[arg-type]
    for name, quality in {"fast": 0.3, "balanced": 0.6, "accurate": 1.0}.items():
        made.add(MemberParts(member=single(name, quality=quality, weight=1.0)))
    return made


def test_the_member_of_highest_quality_is_the_default() -> None:
    assert fleet().routes["auto"].default_member == "accurate"
    assert fleet(default_member="fast").routes["auto"].default_member == "fast"


def test_a_member_admitted_beside_one_of_unknown_quality_is_not_the_default() -> None:
    made = Fleet(OptimizationConfig(max_ensemble_size=4))
    for name, quality in {"upstream": None, "small": 0.4, "best of its family": 1.0}.items():
        made.add(MemberParts(member=single(name, quality=quality, weight=1.0)))
        assert made.routes["auto"].default_member == "upstream"
    made.update("upstream", quality=0.9)
    assert made.routes["auto"].default_member == "best of its family"


def test_a_member_of_unknown_quality_replaces_no_default() -> None:
    made = fleet(4)
    made.add(MemberParts(member=single("unknown", quality=None, weight=1.0)))
    assert made.routes["auto"].default_member == "accurate"


def test_the_default_is_active_and_of_the_others_the_first_in_order() -> None:
    small = fleet(2)
    assert small.active() == ("fast", "accurate")
    assert small.standby() == ("balanced",)


def test_a_smaller_size_retires_the_lowest_utility_but_never_the_default() -> None:
    made = fleet(3)
    utilities = {"fast": 0.1, "balanced": 0.9, "accurate": 0.0}
    made.configure(OptimizationConfig(max_ensemble_size=2), lambda name: utilities[name])
    assert set(made.active()) == {"balanced", "accurate"}
    assert made.standby() == ("fast",)
    made.configure(OptimizationConfig(max_ensemble_size=1), lambda name: utilities[name])
    assert made.active() == ("accurate",)
    made.configure(OptimizationConfig(max_ensemble_size=3), lambda name: utilities[name])
    assert set(made.active()) == {"fast", "balanced", "accurate"}


def test_a_full_ensemble_admits_nobody_and_says_its_size() -> None:
    made = fleet(2)
    with pytest.raises(CapacityError, match="max_ensemble_size is 2"):
        made.admit("balanced")
    assert made.active() == ("fast", "accurate")


def test_a_member_that_stands_by_is_admitted_into_a_free_place() -> None:
    made = fleet(4)
    made.add(MemberParts(member=single("spare", quality=None, weight=1.0), standby=True))
    assert made.standby() == ("spare",)
    made.admit("spare")
    assert "spare" in made.active()
    made.admit("spare")
    assert made.active().count("spare") == 1


def test_the_admitted_member_gets_the_place_before_others_that_wait() -> None:
    made = fleet(4)
    for name in ("first", "second"):
        made.add(MemberParts(member=single(name, quality=None, weight=1.0), standby=True))
    made.admit("second")
    assert "second" in made.active()
    assert made.standby() == ("first",)


def test_unknown_and_double_names_are_refused() -> None:
    made = fleet()
    with pytest.raises(UnknownNameError, match="Known: fast, balanced, accurate"):
        made.parts("nope")
    with pytest.raises(ConfigurationError, match="already"):
        made.add(MemberParts(member=single("fast", quality=None, weight=1.0)))
    with pytest.raises(ConfigurationError, match="route's name"):
        made.add(MemberParts(member=single("auto", quality=None, weight=1.0)))


def test_a_removed_member_is_on_no_route() -> None:
    made = fleet()
    made.remove("accurate")
    assert made.active() == ("fast", "balanced")
    assert made.routes["auto"].default_member == "balanced"
    assert "accurate" not in made
    made.remove("fast")
    made.remove("balanced")
    assert made.routes == {}


def test_routes_have_members_default_and_floor_of_their_own() -> None:
    made = fleet(
        routes={
            "cheap": RouteSettings(members=("fast", "balanced"), default_member="fast", quality_floor=0.2)
        }
    )
    assert [m.member_id for m in made.routes["cheap"].members] == ["fast", "balanced"]
    assert made.routes["cheap"].default_member == "fast"
    assert made.routes["cheap"].quality_floor == 0.2
    assert made.active("auto") == ("fast", "balanced", "accurate")


def test_a_changed_weight_reaches_the_routes() -> None:
    made = fleet()
    made.update("fast", weight=0.25)
    assert made.routes["auto"].members[0].weight == 0.25
    assert made.is_active("fast")
