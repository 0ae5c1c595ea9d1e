"""What silence proves: only who alone gives nothing is taken out, in time, and never too many."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.beliefs import Health
from loadwise.decision.facts import Policy
from loadwise.decision.health import review
from loadwise.decision.rotation import HealthReason
from loadwise.decision.silence import Silence, mute, patience_s
from loadwise.decision.step import Observation, State, step

from .build import POLICY, fresh, route

BELIEFS = fresh(route())
NAMES = st.sampled_from(sorted(BELIEFS))
SILENCES = st.dictionaries(NAMES, st.floats(0.0, 1e4)).map(
    lambda found: [Silence(member_id=name, seconds=seconds) for name, seconds in found.items()]
)
HEALTHS = st.fixed_dictionaries({name: st.sampled_from(list(Health)) for name in BELIEFS})


@given(st.integers(0, 10**6), st.floats(0.1, 600.0), st.floats(0.1, 600.0))
def test_a_silent_member_is_out_before_it_would_be_a_page(
    prompt_tokens: int, alert_s: float, page_s: float
) -> None:
    policy = Policy(silent_alert_s=alert_s, silent_page_s=page_s)
    asked = Silence(member_id="fast", seconds=0.0, prompt_tokens=prompt_tokens)
    assert 0.0 < patience_s(policy, BELIEFS["fast"], asked) < page_s


def test_a_long_prompt_on_a_slow_member_is_waited_for() -> None:
    short, long = (Silence(member_id="accurate", seconds=16.0, prompt_tokens=n) for n in (10, 10_000))
    assert patience_s(POLICY, BELIEFS["accurate"], short) == POLICY.silent_alert_s
    assert patience_s(POLICY, BELIEFS["accurate"], long) > 16.0


@given(NAMES, st.floats(0.01, 1e4))
def test_who_alone_is_silent_too_long_leaves_and_nobody_sooner(name: str, seconds: float) -> None:
    silence = Silence(member_id=name, seconds=seconds)
    changes = review(POLICY, BELIEFS, 100.0, [silence])
    if seconds > patience_s(POLICY, BELIEFS[name], silence):
        assert [(c.member_id, c.health, c.reason) for c in changes] == [
            (name, Health.OUT, HealthReason.SILENT)
        ]
    else:
        assert changes == ()


@given(st.floats(31.0, 1e4))
def test_all_silent_together_stay(seconds: float) -> None:
    silences = [Silence(member_id=name, seconds=seconds) for name in BELIEFS]
    assert mute(POLICY, BELIEFS, silences) == frozenset()


@given(SILENCES, HEALTHS)
def test_silence_takes_at_most_half_out_never_the_last_and_in_one_order(
    silences: list[Silence], healths: dict[str, Health]
) -> None:
    known = {name: belief._replace(health=healths[name]) for name, belief in BELIEFS.items()}
    changes = review(POLICY, known, 100.0, silences)
    left = [change.member_id for change in changes if change.health is Health.OUT]
    before = sum(health is Health.OUT for health in healths.values())
    assert not left or before + len(left) <= len(known) // 2
    again = review(POLICY, dict(reversed(known.items())), 100.0, silences[::-1])
    assert sorted(left) == sorted(c.member_id for c in again if c.health is Health.OUT)


@given(SILENCES)
def test_a_step_takes_the_silent_out_of_every_route(silences: list[Silence]) -> None:
    seen = Observation(now_s=50.0, beliefs={"auto": BELIEFS}, silences=silences)
    _, decision = step(POLICY, State(), seen)
    out = {name for name, belief in decision.beliefs["auto"].items() if belief.health is Health.OUT}
    assert out == {change.member_id for change in decision.health["auto"]}
    _, again = step(POLICY, State(), replace(seen))
    assert again == decision


def test_a_stranger_that_is_silent_changes_nothing() -> None:
    assert review(POLICY, BELIEFS, 1.0, [Silence(member_id="nobody", seconds=1e3)]) == ()
