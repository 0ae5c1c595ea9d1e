"""What is known of an upstream without metrics, or whose metrics are late."""

from __future__ import annotations

from loadwise.engines.accounting import Accounting
from loadwise.engines.upstream_metrics import read_scrape
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


def test_of_a_server_too_busy_to_tell_what_exceeds_the_places_it_spoke_of_waits() -> None:
    accounting = Accounting(FakeClock(), "eu/0", None)
    accounting.in_flight = 20
    assert (accounting.late().running_requests, accounting.late().waiting_requests) == (20, None)
    # A server in which nobody waits has not said how many it runs at once.
    accounting.scraped(read_scrape("vllm:num_requests_running 3\nvllm:num_requests_waiting 0\n"))
    assert accounting.late().waiting_requests is None
    accounting.scraped(read_scrape("vllm:num_requests_running 8\nvllm:num_requests_waiting 2\n"))
    assert (accounting.late().running_requests, accounting.late().waiting_requests) == (8, 12)
    accounting.in_flight = 5
    assert (accounting.late().running_requests, accounting.late().waiting_requests) == (5, 0)
