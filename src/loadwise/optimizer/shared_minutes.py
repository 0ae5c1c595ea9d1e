"""What members with limits were asked for lately by every process of this machine: one file, mapped by all.

Each process writes a slot of its own and reads the others', word by word: nobody waits, and a process that
hangs or dies holds up none. What a process wrote outlives it, so that a start goes on within the minute.

Words are 64-bit integers. A slot begins with its process, then has a column per member: key, requests in
flight, how often it was written, and a ring of seconds (second, requests, tokens).
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Final

from loadwise.decision.limits import EMPTY, KEPT, Minute, Second, recent, together
from loadwise.errors import LoadwiseError
from loadwise.telemetry.workers import alive, began_s

# The form of the file is part of its name: processes of another form have their own.
FILE: Final = "limits-2"
SLOTS: Final = 32
COLUMNS: Final = 32
RING: Final = 64
_SECOND: Final = 3
# Key in two words, in flight, written.
_COLUMN: Final = 4 + RING * _SECOND
# Process, when it began (microseconds since the machine did), columns in use.
_SLOT: Final = 3 + COLUMNS * _COLUMN
_WORDS: Final = 1 + SLOTS * _SLOT
# Instead of a process that said so.
ENDED: Final = -1
# A process of which requests are in flight is looked for this often.
LOOK_S: Final = 1.0


class NoSlotError(LoadwiseError):
    """All slots are taken by processes that run, or ran within the last minute."""


class SharedMinutes:
    """This process among those that share `folder`; `keys` tells members of one name apart.

    Raises `OSError` where the folder cannot be used, `NoSlotError` where it is full.
    """

    def __init__(self, folder: Path, now_s: float, keys: Mapping[str, str] | None = None) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._keys = {} if keys is None else keys
        # By member: its key, and this process's column.
        self._known: dict[str, tuple[int, int]] = {}
        self._columns: dict[str, int] = {}
        self._peers: dict[tuple[int, str], _Peer] = {}
        self._descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # Memory without a place on the disk would end the process where it is first written.
            os.posix_fallocate(self._descriptor, 0, 8 * _WORDS)
            self._map = mmap.mmap(self._descriptor, 8 * _WORDS)
            self._words = memoryview(self._map).cast("q")
            with self._locked():
                self._clear(now_s)
                self._slot = self._take()
        except BaseException:
            os.close(self._descriptor)
            raise

    # --- this process ---

    def put(self, member_id: str, second: Second) -> None:
        """What began within one second, as it is now; beyond `COLUMNS` members nothing is told."""
        at = self._own(member_id)
        if at is None:
            return
        words, place = self._words, at + 4 + second.at % RING * _SECOND
        if words[place] > second.at:
            # Of a request that took longer than a minute: its second is another's now.
            return
        if words[place] != second.at:
            # Nobody shall read another second's figures under this one.
            words[place + 1] = words[place + 2] = 0
            words[place] = second.at
        words[place + 1], words[place + 2] = second.requests, second.tokens
        words[at + 3] += 1

    def hold(self, member_id: str, in_flight: int) -> None:
        """So many requests of this process are in flight on the member."""
        at = self._own(member_id)
        if at is not None:
            self._words[at + 2] = in_flight

    # --- the others ---

    def minute(self, member_id: str, now_s: float) -> Minute:
        """What the other processes asked the member for within the last minute."""
        found = [peer.minute(self._words, now_s) for peer in self._of(member_id)]
        return together(*found) if found else EMPTY

    def in_flight(self, member_id: str, now_s: float) -> int:
        """Requests of other processes that run, in flight on the member."""
        return sum(peer.in_flight(self._words, now_s) for peer in self._of(member_id))

    def close(self) -> None:
        """The process counts as ended: nothing of it is in flight, and its minute stays for a minute."""
        for at in self._columns.values():
            self._words[at + 2] = 0
        self._words[self._slot] = ENDED
        self._words.release()
        self._map.close()
        os.close(self._descriptor)

    # --- the file ---

    def _clear(self, now_s: float) -> None:
        """Slots that are over are empty: what they hold from before the machine started lies ahead of now."""
        for first in range(1, _WORDS, _SLOT):
            if self._words[first] and self._over(first, now_s):
                self._map[8 * first : 8 * (first + _SLOT)] = bytes(8 * _SLOT)

    def _take(self) -> int:
        """The first word of an empty slot that is this process's own now."""
        words = self._words
        for number in range(SLOTS):
            first = 1 + number * _SLOT
            if not words[first]:
                words[first + 1] = round(1e6 * began_s())
                words[first] = os.getpid()
                words[0] = max(words[0], number + 1)
                return first
        raise NoSlotError(f"{SLOTS} processes share these limits already.")

    def _over(self, first: int, now_s: float) -> bool:
        """Whether a slot's process ended, and all that it began is older than a minute."""
        if alive(self._words[first], self._words[first + 1] / 1e6):
            return False
        return not any(_minute(self._words, at, now_s) for at in self._used(first))

    def _used(self, first: int) -> range:
        """Where a slot's columns in use begin; of a damaged one no word outside it."""
        used = min(self._words[first + 2], COLUMNS)
        return range(first + 3, first + 3 + used * _COLUMN, _COLUMN)

    def _own(self, member_id: str) -> int | None:
        at = self._columns.get(member_id)
        return self._new(member_id) if at is None else at

    def _new(self, member_id: str) -> int | None:
        """A column of this process's slot for the member; None where all are used."""
        words, used = self._words, self._words[self._slot + 2]
        if used >= COLUMNS:
            return None
        at = self._slot + 3 + used * _COLUMN
        words[at], words[at + 1] = self._key(member_id)
        words[self._slot + 2] = used + 1
        self._columns[member_id] = at
        return at

    def _key(self, member_id: str) -> tuple[int, int]:
        """What tells the member apart in the file: worked out once, for slots are searched at requests."""
        known = self._known.get(member_id)
        if known is None:
            digest = blake2b(self._keys.get(member_id, member_id).encode(), digest_size=16).digest()
            known = int.from_bytes(digest[:8], signed=True), int.from_bytes(digest[8:], signed=True)
            self._known[member_id] = known
        return known

    def _of(self, member_id: str) -> Iterator[_Peer]:
        """The other processes' columns of the member."""
        for number in range(min(self._words[0], SLOTS)):
            first = 1 + number * _SLOT
            if first == self._slot:
                continue
            process = self._words[first], self._words[first + 1]
            peer = self._peers.get((first, member_id))
            if peer is None or peer.process != process:
                peer = self._found(first, process, member_id)
            if peer is not None:
                yield peer

    def _found(self, first: int, process: tuple[int, int], member_id: str) -> _Peer | None:
        key = self._key(member_id)
        for at in self._used(first):
            if (self._words[at], self._words[at + 1]) == key:
                self._peers[first, member_id] = found = _Peer(process, at)
                return found
        return None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


class _Peer:
    """Another process's column of one member, read again where it was written since."""

    def __init__(self, process: tuple[int, int], at: int) -> None:
        self.process = process
        self._at = at
        self._written = -1
        self._minute: Minute = EMPTY
        self._alive = True
        self._looked_s: float | None = None

    def minute(self, words: memoryview, now_s: float) -> Minute:
        """Its last minute."""
        written = words[self._at + 3]
        if written != self._written:
            self._written, self._minute = written, _minute(words, self._at, now_s)
        return recent(self._minute, now_s)

    def in_flight(self, words: memoryview, now_s: float) -> int:
        """Its requests in flight; none where it has ended."""
        held: int = words[self._at + 2]
        if held and (self._looked_s is None or now_s - self._looked_s >= LOOK_S):
            pid, began = self.process
            self._alive, self._looked_s = alive(pid, began / 1e6), now_s
        return held if self._alive else 0


def _minute(words: memoryview, at: int, now_s: float) -> Minute:
    """A column's last minute; seconds that lie ahead are of before the machine started."""
    ring = words[at + 4 : at + _COLUMN].tolist()
    seconds = zip(ring[::_SECOND], ring[1::_SECOND], ring[2::_SECOND], strict=True)
    last = int(now_s) + 1
    kept = [Second(*found) for found in seconds if last - KEPT < found[0] <= last and (found[1] or found[2])]
    return tuple(sorted(kept))
