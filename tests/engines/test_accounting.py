"""What is known of an upstream without metrics: tokens are seen while an answer is still being read."""

from __future__ import annotations

from loadwise.engines.accounting import Accounting
from loadwise.ports import Progress
from loadwise.testing import FakeClock


def test_tokens_of_an_answer_in_progress_are_seen_from_look_to_look() -> None:
    clock = FakeClock()
    accounting, progress = Accounting(clock, "eu/0", None), Progress()
    accounting.began(progress)
    assert accounting.own().last_token_s is None
    progress.output_tokens = 3
    first_s = clock.monotonic_s()
    assert accounting.own().last_token_s == first_s
    clock.advance(5.0)
    assert accounting.own().last_token_s == first_s
    progress.output_tokens = 4
    assert accounting.own().last_token_s == first_s + 5.0


def test_an_answer_that_ends_is_counted_once() -> None:
    clock = FakeClock()
    accounting, progress = Accounting(clock, "eu/0", None), Progress(output_tokens=3)
    accounting.began(progress)
    first = accounting.own()
    clock.advance(2.0)
    accounting.ended(progress, began_s=0.0)
    again = accounting.own()
    assert first.last_token_s == again.last_token_s
    assert not again.tokens_counted_live
