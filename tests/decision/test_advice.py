"""Advice names a setting and its evidence, and is silent where figures are not known or all is well."""

from __future__ import annotations

import pytest

from loadwise.decision.advice import Figures, MemberFigures, advise

WELL = {
    "requests": 1000,
    "within_fraction": 0.99,
    "members": [
        MemberFigures(member_id="a", quality=0.9, requests=500, within_fraction=0.99),
        MemberFigures(member_id="b", quality=0.5, requests=500, within_fraction=0.98),
    ],
    "block_share": 0.1,
}
BADLY = {**WELL, "within_fraction": 0.6}
SLOW = [MemberFigures(member_id="slow", quality=0.9, requests=100, within_fraction=0.4), *WELL["members"]]
CASES = {
    "enable_ensemble": {**WELL, "gain_low": -0.09, "gain_high": -0.02},
    "allow_degrade": {**BADLY, "allow_degrade": False},
    "max_ensemble_size": {**BADLY, "standby": ("spare",), "max_ensemble_size": 2},
    "upstreams.NAME.replicas": {**BADLY, "time_high_fraction": 0.4},
    "weight of slow": {**WELL, "members": SLOW},
    "compile_mode": {**WELL, "failed_builds": ("a",)},
    "models or upstreams": {**WELL, "members": WELL["members"][:1]},
    "upstreams.NAME.quality": {**WELL, "members": [*WELL["members"], MemberFigures(member_id="c")]},
    "experiment.block_share": {**WELL, "block_share": 0.0},
}


@pytest.mark.parametrize("setting", CASES)
def test_each_trouble_names_the_setting_to_change_and_its_evidence(setting: str) -> None:
    (found,) = advise(Figures(**CASES[setting]))
    assert found.setting == setting
    assert len(found.evidence) > 10
    assert found.sentence.endswith(".")


def test_where_all_is_well_nothing_is_advised() -> None:
    assert advise(Figures(**WELL)) == ()


def test_few_requests_are_no_evidence() -> None:
    assert (
        advise(Figures(**{**BADLY, "requests": 10, "standby": ("spare",), "time_high_fraction": 1.0})) == ()
    )


def test_what_is_not_known_is_not_advised_on() -> None:
    unknown = Figures(members=WELL["members"], block_share=0.1)
    assert advise(unknown) == ()


def test_the_share_and_the_number_of_requests_are_in_the_evidence() -> None:
    (found,) = advise(Figures(**CASES["max_ensemble_size"]))
    assert "60.0% of 1000 requests" in found.evidence
    assert "from 2 to 3" in found.change
