"""Limits that several processes share: nobody goes beyond, nobody waits, and a restart forgets nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from loadwise.decision.limits import Limits, Second
from loadwise.errors import RequestError
from loadwise.optimizer.shared_minutes import FILE, SLOTS, NoSlotError, SharedMinutes

NOW_S = 1000.5
ONLY = {"fast": 0.5}
# Claims of the last places of a member, as fast as they go, until no more are given; then it dies.
CLAIMING = f"""
import os, sys
from pathlib import Path
from loadwise.decision.admission import Entry, PoolLimit, enter
from loadwise.decision.facts import Member, MemberPressure, Objectives, Policy, RequestFacts
from loadwise.decision.limits import Limits
from loadwise.optimizer.shared_minutes import SharedMinutes
from loadwise.optimizer.terms import Terms

terms = Terms()
terms.share(SharedMinutes(Path(sys.argv[1]), {NOW_S}))
member = Member(member_id="m", replicas=(), limits=Limits(requests_per_minute=300))
got = refused = 0
print("ready", flush=True)
sys.stdin.readline()
while refused < 50:
    pressure = MemberPressure(member_id="m", in_flight=got, pool_in_flight=got)
    asked = RequestFacts(request_id="r")
    entry = Entry(Policy(), asked, pressure, PoolLimit(), PoolLimit(), Objectives(), None)
    if enter(terms.claim(entry, member, 1, got, {NOW_S})).admitted:
        got += 1
    else:
        terms.unclaim(member, 1, got)
        refused += 1
print(got, flush=True)
sys.stdin.readline()
os._exit(9)
"""


@contextmanager
def running(code: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that said its first line; it is killed at the end where it still runs."""
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as found:
        try:
            assert said(found) == "ready"
            yield found
        finally:
            found.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_that_race_never_go_beyond_and_their_minute_outlives_them(tmp_path: Path) -> None:
    with ExitStack() as stack:
        racing = [stack.enter_context(running(CLAIMING, tmp_path)) for _ in range(4)]
        for process in racing:
            go_on(process)
        got = sum(int(said(process)) for process in racing)
        for process in racing:
            go_on(process)
            assert process.wait(timeout=20) == 9
    assert got <= 300
    # One that starts now goes on where they ended.
    with running(CLAIMING, tmp_path) as last:
        go_on(last)
        assert int(said(last)) == 300 - got
    shared = SharedMinutes(tmp_path, NOW_S)
    assert [second.requests for second in shared.minute("m", NOW_S)] == [300]
    assert shared.minute("m", NOW_S + 70) == ()
    shared.close()


HOLDING = f"""
import sys
from pathlib import Path
from loadwise.optimizer.shared_minutes import SharedMinutes

shared = SharedMinutes(Path(sys.argv[1]), {NOW_S})
shared.hold("m", 5)
print("ready", flush=True)
sys.stdin.readline()
"""


def test_what_a_process_that_died_had_in_flight_is_free(tmp_path: Path) -> None:
    with running(HOLDING, tmp_path):
        shared = SharedMinutes(tmp_path, NOW_S)
        assert shared.in_flight("m", NOW_S) == 5
    assert shared.in_flight("m", NOW_S + 5) == 0
    shared.close()


def test_each_sees_the_others_by_member_and_by_second(tmp_path: Path) -> None:
    one, two = SharedMinutes(tmp_path, NOW_S), SharedMinutes(tmp_path, NOW_S)
    one.put("m", Second(1000, 2, 30))
    one.put("m", Second(990, 1, 5))
    one.put("other", Second(1000, 9, 9))
    assert two.minute("m", NOW_S) == (Second(990, 1, 5), Second(1000, 2, 30))
    assert one.minute("m", NOW_S) == ()
    one.put("m", Second(1000, 0, 0))
    assert two.minute("m", NOW_S) == (Second(990, 1, 5),)
    # The ring's place of an old second is another's now.
    one.put("m", Second(990 + 64, 1, 1))
    one.put("m", Second(990, 0, 0))
    assert two.minute("m", 1054.0) == (Second(1054, 1, 1),)
    one.hold("m", 3)
    assert two.in_flight("m", NOW_S) == 3
    one.close()
    assert two.in_flight("m", NOW_S) == 0
    two.close()


def test_members_of_one_name_and_different_servers_are_told_apart(tmp_path: Path) -> None:
    one = SharedMinutes(tmp_path, NOW_S, {"m": "m http://one"})
    two = SharedMinutes(tmp_path, NOW_S, {"m": "m http://two"})
    one.put("m", Second(1000, 2, 30))
    assert two.minute("m", NOW_S) == ()
    one.close()
    two.close()


def test_a_machine_that_started_again_forgets_what_lies_ahead(tmp_path: Path) -> None:
    before = [SharedMinutes(tmp_path, NOW_S) for _ in range(3)]
    for each in before:
        each.put("m", Second(1000, 2, 30))
    for each in before:
        each.close()
    after = SharedMinutes(tmp_path, 20.0)
    assert after.minute("m", 20.0) == ()
    # Nor is it remembered when this machine has run for as long.
    assert after.minute("m", NOW_S) == ()
    after.close()


@pytest.mark.parametrize("word", [2**63 - 1, 10**6, -1, -(2**63)])
def test_a_damaged_file_keeps_nobody_from_starting_and_counting(tmp_path: Path, word: int) -> None:
    SharedMinutes(tmp_path, NOW_S).close()
    file = tmp_path / FILE
    file.write_bytes(word.to_bytes(8, sys.byteorder, signed=True) * (file.stat().st_size // 8))
    one, two = SharedMinutes(tmp_path, NOW_S), SharedMinutes(tmp_path, NOW_S)
    one.put("m", Second(1000, 2, 30))
    one.hold("m", 1)
    assert two.minute("m", NOW_S) == (Second(1000, 2, 30),)
    assert two.in_flight("m", NOW_S) == 1
    one.close()
    two.close()


def test_slots_of_processes_that_ended_are_used_again_after_a_minute(tmp_path: Path) -> None:
    for number in range(SLOTS - 1):
        ended = SharedMinutes(tmp_path, NOW_S)
        ended.put("m", Second(1000, 1, 1))
        ended.close()
        assert number < SLOTS
    last = SharedMinutes(tmp_path, NOW_S)
    assert sum(second.requests for second in last.minute("m", NOW_S)) == SLOTS - 1
    with pytest.raises(NoSlotError):
        SharedMinutes(tmp_path, NOW_S)
    SharedMinutes(tmp_path, NOW_S + 70).close()
    last.close()


def limited(make: Any, folder: Path, **limits: int) -> Any:
    server = make(qualities=ONLY, capacity=100)
    manager = server.optimizer.ensemble_manager
    manager.fleet.update("fast", limits=Limits(**limits))
    manager.terms.share(SharedMinutes(folder, server.clock.monotonic_s()))
    return server


def refusal(server: Any, number: int) -> str | None:
    with pytest.raises(RequestError) as refused:
        server.dispatch(number)
    return refused.value.code


async def test_two_servers_keep_one_limit_and_a_third_goes_on_from_there(make: Any, tmp_path: Path) -> None:
    one, two = (limited(make, tmp_path, requests_per_minute=4, tokens_per_minute=10_000) for _ in range(2))
    for number, server in enumerate((one, two, one)):
        server.end(server.dispatch(number))
    two.dispatch(3)
    assert {refusal(one, 4), refusal(two, 5)} == {"requests_per_minute"}
    shown = one.optimizer.ensemble_manager.get_ensemble_status()["models"][0]
    assert shown["last_minute"]["requests"] == 4
    for server in (one, two):
        server.optimizer.ensemble_manager.terms.close()
    assert refusal(limited(make, tmp_path, requests_per_minute=4), 6) == "requests_per_minute"


async def test_two_servers_share_the_requests_that_a_member_may_run_at_once(
    make: Any, tmp_path: Path
) -> None:
    one, two = (limited(make, tmp_path, max_concurrent_requests=2) for _ in range(2))
    running = one.dispatch(0)
    two.dispatch(1)
    assert {refusal(one, 2), refusal(two, 3)} == {"max_concurrent_requests"}
    one.end(running)
    two.dispatch(4)
    assert refusal(one, 5) == "max_concurrent_requests"
