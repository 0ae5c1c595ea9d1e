"""What loadwise changed, as people read it: one line, the reason, and the shell command that undoes it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from loadwise.clock import iso_utc
from loadwise.ports import JsonObject
from loadwise.telemetry.journal.changes import Change, ChangeKind

if TYPE_CHECKING:
    from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer

_KEY = '-H "x-loadwise-admin-key: $LOADWISE_ADMIN_KEY"'

# What is said of a change that no command undoes.
COMES_BACK: Final = "it comes back by itself"
RESTS: Final = {
    ChangeKind.BUILD: "nothing to undo: the original serves",
    ChangeKind.ROLLOUT: "nothing is optimised there now",
}


class Told(NamedTuple):
    """A change as people read it, but for how long ago it was; `at_s` is wall time."""

    at_s: float
    row: JsonObject

    def at(self, now_s: float) -> JsonObject:
        """The change as it is told at `now_s` (wall time)."""
        return {**self.row, "ago_s": max(0.0, now_s - self.at_s)}


def changes(optimizer: ServerSideOptimizer, within_s: float | None = None) -> list[JsonObject]:
    """What was changed within the last `within_s` seconds (None: all that is known), newest first.

    `undo` is None where no command undoes it; `rests` then says why none need.
    """
    now_s, newest = optimizer.clock.wall_s(), optimizer.chronicle.newest()
    recent = newest if within_s is None else takewhile(lambda c: c.at_s >= now_s - within_s, newest)
    return [found.at(now_s) for found in told(recent)]


def told(found: Iterable[Change]) -> Iterator[Told]:
    """Changes as people read them; the first decision of a pool changes nothing and is left out."""
    for change in found:
        if change.kind is ChangeKind.STRATEGY and change.before is None:
            continue
        row = {
            "time": iso_utc(change.at_s),
            "kind": change.kind.value,
            "what": line(change),
            "reason": change.reason,
            "undo": (undo := command(change)),
            "rests": None if undo else RESTS.get(change.kind, COMES_BACK),
        }
        yield Told(change.at_s, row)


def line(change: Change) -> str:
    """The change in one line."""
    subject, before, after = change.subject, change.before, change.after
    match change.kind:
        case ChangeKind.STRATEGY:
            load = "unknown" if change.load_score is None else f"{change.load_score:.2f}"
            return f"strategy {before} → {after} on pool {subject}, at load {load}"
        case ChangeKind.MEMBER | ChangeKind.REPLICA:
            return f"{change.kind.value} {subject}: {before} → {after}"
        case ChangeKind.BUILD:
            return (
                f"build {after} of {subject} begun"
                if before is None
                else f"build {before} of {subject}: {after}"
            )
        case ChangeKind.ROLLOUT:
            return f"rollout of {subject}: {before} → {after} optimised"
        case _:
            return f"configuration {subject}: {after}"


def command(change: Change) -> str | None:
    """The shell command that undoes the change."""
    if change.kind in (ChangeKind.MEMBER, ChangeKind.REPLICA) or not change.undo:
        return None
    method, path = change.undo.split(" ", 1)
    post = f'curl -X {method} "$LOADWISE_URL{path}" {_KEY}'
    body = change.undo_body
    if not body:
        return post
    return f"{post} -H 'content-type: application/json' -d {shlex.quote(msgspec.json.encode(body).decode())}"
