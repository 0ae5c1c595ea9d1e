"""Which member leads a shared device: the best that carries what is asked for, and what that is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.decision.build import fresh, route, taught

from loadwise.decision.beliefs import BATCH_START, Belief, Health
from loadwise.decision.capacity import busy_s, capacity_per_s
from loadwise.decision.facts import Objectives
from loadwise.decision.lead import CAP_FADES_S, Asked, Crew, LeadState, lead
from loadwise.decision.surge import NO_LIMIT, NO_SURGE, Surge, overflows, poured

# Seconds per output token on an idle device; taught at little work.
SPEEDS = {"fast": 0.001, "balanced": 0.004, "accurate": 0.012}
PLACES = dict.fromkeys(SPEEDS, 32)


def known() -> dict[str, Belief]:
    return taught(route(), SPEEDS)


def carried(name: str, prompt_tokens: float = 100.0) -> float:
    return capacity_per_s(known()[name], Objectives(), 32, prompt_tokens)


@dataclass
class Loop:
    """Probes a second apart over a demand in requests per second."""

    beliefs: dict[str, Belief] = field(default_factory=known)
    state: LeadState = field(default_factory=LeadState)
    asked: Asked = field(default_factory=Asked)
    now_s: float = 0.0
    troubles: int = 0

    def run(self, per_s: float, seconds: int, troubled: float = 0.0) -> list[str | None]:
        led = []
        for _ in range(seconds):
            self.now_s += 1.0
            self.troubles += round(troubled * per_s)
            self.asked = Asked(
                requests=self.asked.requests + round(per_s),
                prompt_tokens=self.asked.prompt_tokens + 100.0 * round(per_s),
                troubled=dict.fromkeys(SPEEDS, self.troubles),
            )
            crew = Crew(
                route="auto", pool_id="local", places=PLACES, default_member="accurate", asked=self.asked
            )
            self.state = lead(self.state, crew, self.beliefs, self.now_s)
            led.append(self.state.member_id)
        return led


# --- capacity ----------------------------------------------------------------------------------------


def test_what_a_member_carries_is_little_s_law_over_its_lines() -> None:
    belief = known()["fast"]
    work = 32.0 + BATCH_START
    held_s = 164.0 * belief.first_fit.at(work) + belief.answer_tokens * belief.output_fit.at(work)
    assert carried("fast") == pytest.approx(32.0 / held_s)


def test_faster_members_carry_more_and_cost_less() -> None:
    rates = [carried(name) for name in ("accurate", "balanced", "fast")]
    costs = [busy_s(known()[name], 32, 100.0) for name in ("accurate", "balanced", "fast")]
    assert rates == sorted(rates)
    assert costs == sorted(costs, reverse=True)


def test_longer_prompts_leave_less_to_carry() -> None:
    assert carried("fast", 2000.0) < carried("fast", 100.0)


def test_a_member_that_misses_alone_carries_nothing() -> None:
    slow = taught(route(), {"accurate": 0.5})["accurate"]
    assert capacity_per_s(slow, Objectives(), 32, 100.0) == 0.0


def test_without_places_the_objectives_bound_what_is_carried() -> None:
    belief = known()["accurate"]
    unbounded = capacity_per_s(belief, Objectives(), None, 100.0)
    assert carried("accurate") <= unbounded < inf


@given(st.floats(1.0, 1e4), st.integers(1, 256))
def test_more_places_never_carry_less(prompt_tokens: float, places: int) -> None:
    belief = known()["balanced"]
    fewer = capacity_per_s(belief, Objectives(), places, prompt_tokens)
    assert 0.0 <= fewer <= capacity_per_s(belief, Objectives(), places + 1, prompt_tokens) + 1e-9


# --- the lead ----------------------------------------------------------------------------------------


def test_nobody_leads_before_anything_was_asked() -> None:
    assert Loop().run(0, 5) == [None] * 5


def test_the_best_member_leads_at_low_demand() -> None:
    assert Loop().run(0.5 * carried("accurate"), 30)[-1] == "accurate"


def test_above_what_the_best_carries_a_cheaper_one_leads_within_seconds() -> None:
    loop = Loop()
    loop.run(0.5 * carried("accurate"), 30)
    led = loop.run(2.0 * carried("accurate"), 10)
    assert led[-1] in {"balanced", "fast"}
    assert led.index(led[-1]) <= 5


def test_quality_comes_back_when_demand_falls() -> None:
    loop = Loop()
    loop.run(2.0 * carried("accurate"), 30)
    assert loop.run(0.5 * carried("accurate"), 30)[-1] == "accurate"


def test_beyond_everybody_the_one_that_carries_most_leads() -> None:
    assert Loop().run(5.0 * carried("fast"), 20)[-1] == "fast"


def surge(loop: Loop, per_s: float, most: int) -> Surge:
    """The bucket when requests at that rate first overflow it, or after `most` of them."""
    found, limit = NO_SURGE, loop.state.limit
    for at in range(most):
        found = poured(found, limit, loop.now_s + at / per_s)
        if overflows(found, limit):
            break
    return found


def test_a_surge_moves_the_lead_before_many_requests_are_in_flight() -> None:
    loop, rate = Loop(), carried("accurate")
    loop.run(0.5 * rate, 30)
    seen = surge(loop, 2.0 * rate, 100)
    assert overflows(seen, loop.state.limit)
    assert seen.requests <= PLACES["accurate"]
    asked = replace(loop.asked, requests=loop.asked.requests + seen.requests, surge=seen)
    crew = Crew(route="auto", pool_id="local", places=PLACES, default_member="accurate", asked=asked)
    after = lead(loop.state, crew, loop.beliefs, seen.at_s)
    assert after.member_id != "accurate"
    assert after.demand_per_s == pytest.approx(2.0 * rate, rel=0.2)
    # It was looked at: the same bucket is no surge under the new lead.
    assert not overflows(seen, after.limit)
    assert poured(seen, after.limit, seen.at_s).requests == 1


def test_what_the_lead_carries_is_no_surge() -> None:
    loop, rate = Loop(), carried("accurate")
    loop.run(0.5 * rate, 30)
    assert not overflows(surge(loop, 0.95 * rate, 1000), loop.state.limit)


def test_a_surge_that_the_lead_carries_after_all_is_looked_at_once() -> None:
    loop, rate = Loop(), carried("accurate")
    loop.run(0.5 * rate, 30)
    seen = surge(loop, 2.0 * rate, 100)
    loop.beliefs = {name: belief._replace(cost=belief.cost / 10.0) for name, belief in loop.beliefs.items()}
    asked = replace(loop.asked, requests=loop.asked.requests + seen.requests, surge=seen)
    crew = Crew(route="auto", pool_id="local", places=PLACES, default_member="accurate", asked=asked)
    after = lead(loop.state, crew, loop.beliefs, seen.at_s + 0.001)
    assert after.member_id == "accurate"
    assert not overflows(seen, after.limit)


def test_nobody_waits_for_a_surge_where_no_other_carries_more() -> None:
    loop = Loop()
    loop.run(5.0 * carried("fast"), 20)
    assert loop.state.limit == NO_LIMIT


@given(st.floats(0.1, 3.0))
def test_constant_demand_changes_the_lead_at_most_once(share: float) -> None:
    led = Loop().run(max(1.0, share * carried("accurate")), 120)
    changes = sum(a != b for a, b in pairwise(led))
    assert changes <= 1


def test_a_lead_that_is_seen_to_carry_less_gives_way_and_is_tried_again_later() -> None:
    loop, rate = Loop(), 0.6 * carried("accurate")
    assert loop.run(rate, 20)[-1] == "accurate"
    assert loop.run(rate, 10, troubled=0.5)[-1] != "accurate"
    assert "accurate" not in loop.run(rate, 20)
    assert loop.run(rate, int(2 * CAP_FADES_S))[-1] == "accurate"


def test_a_cap_of_last_week_bounds_nothing() -> None:
    loop, rate = Loop(), 0.6 * carried("accurate")
    loop.run(rate, 20)
    loop.run(rate, 10, troubled=0.5)
    assert "accurate" in loop.state.caps
    loop.now_s += 7 * 86_400.0
    assert loop.run(rate, 60)[-1] == "accurate"


def test_single_mishaps_are_no_trouble() -> None:
    loop, rate = Loop(), 0.6 * carried("accurate")
    loop.run(rate, 20)
    assert set(loop.run(rate, 30, troubled=0.02)) == {"accurate"}


def test_a_member_that_is_out_never_leads() -> None:
    loop = Loop()
    loop.run(1.0, 20)
    loop.beliefs["accurate"] = loop.beliefs["accurate"]._replace(health=Health.OUT)
    assert loop.run(1.0, 1) == ["balanced"]


def test_of_equal_quality_the_default_member_leads() -> None:
    loop = Loop()
    loop.beliefs = {name: belief._replace(quality=None) for name, belief in loop.beliefs.items()}
    assert loop.run(1.0, 10)[-1] == "accurate"


def test_unmeasured_members_lead_by_what_is_assumed_of_them() -> None:
    loop = Loop(beliefs=fresh(route()))
    assert loop.run(1.0, 10)[-1] == "accurate"


def test_the_same_observations_give_the_same_lead() -> None:
    one, other = Loop(), Loop()
    assert one.run(20.0, 40) == other.run(20.0, 40)
    assert replace(one.state) == other.state
