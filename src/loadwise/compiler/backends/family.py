"""A process and all below it: what they use, and when they may run."""

from __future__ import annotations

import contextlib
import os
from functools import cache
from itertools import count
from pathlib import Path

import psutil

# Of looks, those that search for new processes.
_SEARCH_EVERY = 8
# Processor time that a build did not get stays owed, up to so many seconds.
MOST_OWED_S = 2.0


class Family:
    """The process `pid` and its descendants; those that have ended count with whoever waited for them."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._members: list[psutil.Process] = []
        self._looks = count()
        self._yielding = False

    def resident_bytes(self) -> int:
        """Resident memory of all; what has ended counts nothing."""
        return sum(_resident(member) for member in self._found())

    def processor_s(self) -> float:
        """Processor time of all, those included that have ended and were waited for."""
        return sum(_processor_s(member) for member in self._found())

    def yield_to_all(self, yielding: bool) -> None:
        """They have only what nobody else wants of the processors, or again as much as others, on Linux."""
        if yielding is not self._yielding:
            self._yielding = yielding
            for member in self._found():
                _give_way(member.pid, idle=yielding)

    def _found(self) -> list[psutil.Process]:
        if next(self._looks) % _SEARCH_EVERY == 0:
            with contextlib.suppress(psutil.Error):
                known = {member.pid: member for member in self._members}
                found = descendants(self._pid)
                self._members = [known.get(pid) or psutil.Process(pid) for pid in (self._pid, *found)]
        return self._members


def descendants(pid: int) -> list[int]:
    """Ids of all below a process; where Linux lists each one's children, no other process is looked at."""
    if not _children_are_listed():
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    found, waiting = list[int](), [pid]
    while waiting:
        below = _children(waiting.pop())
        found += below
        waiting += below
    return found


@cache
def _children_are_listed() -> bool:
    return any(Path("/proc/self/task").glob("*/children"))


def _children(pid: int) -> list[int]:
    """Those of every thread; a process or thread that has ended has none."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, (thread / "children").read_text().split())
    return found


class Duty:
    """Lends processor time: a share of the time that passes, and what was not had of it stays owed.

    So a build that others keep from the processor while it may run may run for longer.
    """

    def __init__(self) -> None:
        self._owed_s = 0.0
        # Others have kept it from the processors for long, and it has not been made up for since.
        self.starved = False

    def may_run(self, passed_s: float, had_s: float, share: float) -> bool:
        """Whether the build may run next, after `passed_s` in which it computed for `had_s`."""
        self._owed_s = min(MOST_OWED_S, self._owed_s + share * passed_s - had_s)
        if share >= 1.0:
            self._owed_s = max(0.0, self._owed_s)
        self.starved = self._owed_s >= (MOST_OWED_S / 2 if self.starved else MOST_OWED_S)
        return self._owed_s >= 0.0


def _give_way(pid: int, *, idle: bool) -> None:
    """The process is scheduled when no other wants to run, or again as its niceness says."""
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(pid, os.SCHED_IDLE if idle else os.SCHED_OTHER, os.sched_param(0))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and all below it; what has ended counts nothing."""
    return Family(pid).resident_bytes()


def _resident(member: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(member.memory_info().rss)
    return 0


def _processor_s(member: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        return float(sum(member.cpu_times()[:4]))
    return 0.0
