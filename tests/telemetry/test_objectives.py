"""Windows of judged and missed requests: equal to counting them one by one, to one mark's width."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.burn import WINDOWS_S, Share
from loadwise.telemetry.objectives import ObjectiveCounts

STEPS = st.lists(st.tuples(st.floats(0.0, 400.0), st.booleans()), max_size=80)


@given(STEPS, st.floats(0.0, 2000.0))
def test_a_window_counts_what_lies_in_it(steps: list[tuple[float, bool]], quiet_s: float) -> None:
    counts, now_s, happened = ObjectiveCounts(every_s=60.0), 0.0, []
    for passed_s, within in steps:
        now_s += passed_s
        counts.note("auto", within, now_s)
        happened.append((now_s, within))
    now_s += quiet_s
    for span_s in (300.0, 3600.0):
        found = counts.over("auto", span_s, now_s)
        inner = [within for at_s, within in happened if at_s >= now_s - span_s + 60.0]
        outer = [within for at_s, within in happened if at_s >= now_s - span_s - 60.0]
        assert len(inner) <= found.judged <= len(outer)
        assert inner.count(False) <= found.missed <= outer.count(False)


def test_what_could_not_be_judged_is_not_counted() -> None:
    counts = ObjectiveCounts()
    counts.note("auto", None, 1.0)
    assert counts.over("auto", 300.0, 2.0) == Share(0, 0)


def test_a_week_of_requests_takes_bounded_memory() -> None:
    counts = ObjectiveCounts(every_s=60.0)
    for minute in range(7 * 24 * 60):
        counts.note("auto", True, 60.0 * minute)
    assert len(counts._marks["auto"]) <= max(WINDOWS_S) / 60.0 + 2
    assert counts.over("auto", 3600.0, 7 * 86_400.0).judged in (60, 61)
