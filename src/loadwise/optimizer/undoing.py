"""What loadwise changed, as people read it: one line, the reason, and the shell command that undoes it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import msgspec

from loadwise.ports import JsonObject
from loadwise.telemetry.journal.changes import ChangeKind

if TYPE_CHECKING:
    from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer

_KEY = '-H "x-loadwise-admin-key: $LOADWISE_ADMIN_KEY"'


def changes(optimizer: ServerSideOptimizer, within_s: float | None = None) -> list[JsonObject]:
    """What was changed within the last `within_s` seconds (None: all that is known), newest first.

    `undo` is None where what changed comes back by itself.
    """
    now_s = optimizer.clock.wall_s()
    found = [change for change in optimizer.chronicle.changes(within_s) if not _begins(change)]
    return [
        {
            "time": change["time"],
            "ago_s": max(0.0, now_s - change["at_s"]),
            "kind": change["kind"],
            "what": line(change),
            "reason": change["reason"],
            "undo": command(change),
        }
        for change in reversed(found)
    ]


def _begins(change: JsonObject) -> bool:
    """The first decision of a pool changes nothing."""
    return change["kind"] == ChangeKind.STRATEGY and change["before"] is None


def line(change: JsonObject) -> str:
    """The change in one line."""
    subject, before, after = change["subject"], change["before"], change["after"]
    match change["kind"]:
        case ChangeKind.STRATEGY:
            score = change["load_score"]
            load = "unknown" if score is None else f"{score:.2f}"
            return f"strategy {before} → {after} on pool {subject}, at load {load}"
        case ChangeKind.MEMBER:
            return f"member {subject}: {before} → {after}"
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


def command(change: JsonObject) -> str | None:
    """The shell command that undoes the change."""
    if change["kind"] == ChangeKind.MEMBER or not change["undo"]:
        return None
    method, path = str(change["undo"]).split(" ", 1)
    post = f'curl -X {method} "$LOADWISE_URL{path}" {_KEY}'
    body: dict[str, Any] | None = change["undo_body"]
    if not body:
        return post
    return f"{post} -H 'content-type: application/json' -d {shlex.quote(msgspec.json.encode(body).decode())}"
