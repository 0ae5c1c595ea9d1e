"""What is believed of a member after a restart."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest

from loadwise.decision.beliefs import Belief, Health, initial
from loadwise.decision.facts import Ending, Member, Objectives, Outcome, Policy, Replica
from loadwise.decision.outcome import learn
from loadwise.decision.resumption import resumed, sound

POLICY = Policy()
MEMBER = Member(member_id="m", replicas=(Replica(replica_id="m", pool_id="p"),), quality=0.8)


def fresh(now_s: float = 0.0, *, each_s: float = 0.05, cost: float = 1.0) -> Belief:
    return initial(MEMBER, Objectives(time_per_output_token_s=each_s), now_s, cost)


def experienced(answers: int = 60, each_s: float = 0.04) -> Belief:
    belief = fresh()
    for number in range(answers):
        outcome = Outcome(
            request_id=str(number), member_id="m", replica_id="m", ending=Ending.SUCCEEDED,
            finished_s=number + 1.0, total_s=0.1 + 99 * each_s, time_to_first_token_s=0.1, prompt_tokens=50,
            output_tokens=100, finish_reason="stop", concurrency=2,
        )  # fmt: skip
        belief = learn(POLICY, belief, outcome)
    return belief


def test_speed_lengths_and_counts_go_on() -> None:
    kept = experienced()
    again = resumed(POLICY, fresh(5000.0), kept, away_s=10.0)
    assert again.output_fit.at(8.0) == pytest.approx(kept.output_fit.at(8.0), rel=0.05)
    assert again.output_fit.at(8.0) > 1.5 * fresh().output_fit.at(8.0)
    assert again.measured
    assert again.answers == kept.answers
    assert again.updated_s == 5000.0
    assert again.within_fraction == pytest.approx(1.0)


def test_it_fades_by_the_time_that_nobody_listened() -> None:
    kept = experienced()
    day, week = (resumed(POLICY, fresh(0.0), kept, away_s=days * 86_400.0) for days in (1, 7))
    assert kept.weight > day.weight > week.weight
    assert kept.output_fit.at(8.0) > week.output_fit.at(8.0)


def test_health_what_was_recent_and_quality_are_of_this_start() -> None:
    kept = experienced()._replace(
        quality=0.1, health=Health.OUT, faults_in_a_row=7, removals=3, recent_faults=5.0, trend=3.0,
        failed_s=60.0,
    )  # fmt: skip
    again = resumed(POLICY, fresh(5000.0), kept, away_s=1.0)
    assert (again.health, again.faults_in_a_row, again.removals) == (Health.HEALTHY, 0, 0)
    assert (again.recent_faults, again.trend, again.failed_s) == (0.0, 1.0, -inf)
    assert again.quality == 0.8


@pytest.mark.parametrize("other", [{"each_s": 0.2}, {"cost": 3.0}])
def test_under_other_objectives_or_costs_only_lengths_go_on(other: dict[str, float]) -> None:
    kept, start = experienced(), fresh(9.0, **other)
    again = resumed(POLICY, start, kept, away_s=1.0)
    assert again == start._replace(answers=kept.answers, answer_tokens=kept.answer_tokens)


def test_figures_that_are_none_are_not_taken_up() -> None:
    assert sound(experienced())
    assert not sound(experienced()._replace(weight=nan))
    assert not sound(experienced()._replace(latency_ms=inf))
    assert not sound(experienced()._replace(outcomes=-1))
    assert not sound(experienced()._replace(prior=replace(fresh().prior, output_idle_s=inf)))
