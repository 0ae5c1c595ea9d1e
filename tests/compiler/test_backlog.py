"""Work in line: in order, one at a time, on threads that end with it."""

from __future__ import annotations

import threading

import pytest

from loadwise.compiler.backlog import Backlog, Job


@pytest.fixture
def backlog():
    backlog = Backlog()
    yield backlog
    backlog.close()


def test_jobs_run_in_order_one_at_a_time_each_on_a_thread_that_ends_with_it(backlog: Backlog) -> None:
    seen: list[tuple[str, threading.Thread]] = []
    running, most = 0, 0

    def work(stop: threading.Event) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        stop.wait(0.01)
        seen.append((f"job {len(seen)}", threading.current_thread()))
        running -= 1

    assert all(backlog.add(Job((f"job {number}", ""), work)) for number in range(5))
    assert backlog.wait(60.0)
    backlog.close()
    assert [name for name, _ in seen] == [f"job {number}" for number in range(5)]
    assert most == 1
    assert len({id(thread) for _, thread in seen}) == 5
    for _, thread in seen:
        thread.join(60.0)
        assert not thread.is_alive()


def test_what_is_pending_is_not_added_twice_but_may_become_forced(backlog: Backlog) -> None:
    go = threading.Event()
    assert backlog.add(Job(("model", "default"), lambda stop: go.wait(60.0) and None))
    again = Job(("model", "max-autotune"), lambda stop: None)
    assert backlog.add(again)
    assert not backlog.add(Job(("model", "max-autotune"), lambda stop: None, forced=True))
    assert again.forced
    assert not backlog.wait(0.01)
    go.set()
    assert backlog.wait(60.0)
    assert backlog.add(Job(("model", "max-autotune"), lambda stop: None))


def test_job_that_raises_does_not_keep_the_next_from_running(
    backlog: Backlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, raised = threading.Event(), list[threading.ExceptHookArgs]()
    monkeypatch.setattr(threading, "excepthook", raised.append)

    def broken(stop: threading.Event) -> None:
        raise ValueError("broken")

    backlog.add(Job(("first", ""), broken))
    backlog.add(Job(("second", ""), lambda stop: ran.set()))
    assert ran.wait(60.0)
    assert backlog.wait(60.0)
    assert [str(found.exc_value) for found in raised] == ["broken"]


def test_closing_stops_what_runs_and_what_waits(backlog: Backlog) -> None:
    ended: list[bool] = []
    for name in ("first", "second"):
        backlog.add(Job((name, ""), lambda stop: ended.append(stop.wait(60.0))))
    backlog.close()
    assert backlog.wait(60.0)
    assert ended == [True, True]
