"""What API server processes of one engine say to one another, as frames over a private Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, get_args

import msgspec
from msgspec import Struct

from loadwise.decision.facts import Number, Outcome, RequestFacts, StrategyName
from loadwise.engines.inside.totals import View as EngineView
from loadwise.errors import EngineError, RequestError
from loadwise.gateway.control_plane import error_of
from loadwise.optimizer.desk import Began, Ended, Grounds
from loadwise.optimizer.plan import Plan
from loadwise.ports import Advice, Command, Dispatch, Engine, JsonObject, View

# Larger frames are a mistake or an attack.
LIMIT_BYTES: Final = 64 * 1024**2
_COMMANDS: Final[Mapping[str, type[Any]]] = {kind.__name__: kind for kind in get_args(Command)}


class Hello(Struct, tag=True):
    """The first frame of a process: its name."""

    process: str


class Decided(Struct, kw_only=True):
    """A dispatch without its engine, which stays where it is."""

    request: RequestFacts
    member_id: str
    replica_id: str
    strategy: StrategyName
    reason: str
    propensity: float
    changes: dict[str, Number]
    config_version: int
    started_s: float
    concurrency: int
    work: float | None
    load_score: float | None
    control: bool
    advised: Advice | None = None


class Note(Struct, kw_only=True):
    """A request that began (with `decided`) or ended (with `outcome`)."""

    number: int
    decision_s: float = 0.0
    decided: Decided | None = None
    grounds: Grounds | None = None
    outcome: Outcome | None = None


class Report(Struct, tag=True):
    """What a process saw since its last report; sent every second at least."""

    view: EngineView
    notes: list[Note]
    # All requests below it have ended.
    open_from: int
    errors: int = 0
    off: str | None = None


class Ask(Struct, tag=True):
    """A view to be read or a command to be applied, on behalf of somebody who asked another process."""

    number: int
    view: str | None = None
    options: dict[str, Any] = {}
    command: str | None = None
    values: dict[str, Any] = {}


class Done(Struct, tag=True):
    """The plan of that number is followed here; 0 says that the process is there."""

    serial: int


class Follow(Struct, tag=True):
    """The plan to follow from now on."""

    plan: Plan


class There(Struct, tag=True):
    """Asks whether the process is there."""


class Fault(Struct):
    """A `RequestError` on its way."""

    message: str
    status: int
    kind: str
    param: str | None
    code: str | None
    retry_after_s: float | None


class Told(Struct, tag=True):
    """The answer to an `Ask`."""

    number: int
    value: JsonObject | None = None
    fault: Fault | None = None


Up = Hello | Report | Ask | Done
Down = Follow | There | Told
_encode = msgspec.msgpack.Encoder().encode
_up = msgspec.msgpack.Decoder(Up)
_down = msgspec.msgpack.Decoder(Down)


async def send(writer: asyncio.StreamWriter, frame: Up | Down) -> None:
    """The frame is on its way."""
    writer.write(packed(frame))
    await writer.drain()


def packed(frame: Up | Down) -> bytes:
    """The frame as it lies on the wire: its length, then itself."""
    data = _encode(frame)
    return len(data).to_bytes(4, "big") + data


async def receive_up(reader: asyncio.StreamReader) -> Up:
    """The next frame of a process; `EngineError` when there is none to come or it is no frame."""
    frame: Up = _decoded(_up, await _frame(reader))
    return frame


async def receive_down(reader: asyncio.StreamReader) -> Down:
    """The next frame for a process; `EngineError` when there is none to come or it is no frame."""
    frame: Down = _decoded(_down, await _frame(reader))
    return frame


def _decoded(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise EngineError(f"Another process sent what is no frame: {error}") from None


async def _frame(reader: asyncio.StreamReader) -> bytes:
    try:
        length = int.from_bytes(await reader.readexactly(4), "big")
        if length > LIMIT_BYTES:
            raise EngineError(f"Another process announced {length} bytes, which is no frame.")
        return await reader.readexactly(length)
    except (OSError, asyncio.IncompleteReadError):
        raise EngineError("The other process is gone.") from None


# --- what is sent, from and to the classes it stands for -------------------------------------------


def noted(note: Began | Ended) -> Note:
    """A note of a desk as it is sent."""
    if isinstance(note, Ended):
        return Note(number=note.number, outcome=note.outcome())
    dispatch = note.dispatch
    values = {name: getattr(dispatch, name) for name in _DECIDED}
    decided = Decided(**{**values, "changes": dict(dispatch.changes)})
    return Note(number=note.number, decision_s=note.decision_s, decided=decided, grounds=note.grounds)


def unpacked(note: Note, engine: Engine) -> Began | Ended:
    """A note as its desk made it."""
    if note.outcome is not None:
        return Ended(note.number, lambda: note.outcome)  # type: ignore[arg-type,return-value]  # it is not None
    if note.decided is None or note.grounds is None:
        raise EngineError("Another process sent a note that says nothing.")
    values = {name: getattr(note.decided, name) for name in _DECIDED}
    return Began(note.number, Dispatch(engine=engine, **values), note.decision_s, note.grounds)


_DECIDED: Final = tuple(field.name for field in fields(Dispatch) if field.name in Decided.__struct_fields__)


def asking(number: int, command: Command) -> Ask:
    """A command as it is sent."""
    return Ask(number, command=type(command).__name__, values=msgspec.to_builtins(command))


def command_of(ask: Ask) -> Command:
    """The command that is asked for."""
    kind = _COMMANDS.get(ask.command or "")
    if kind is None:
        raise EngineError(f"Another process asked for {ask.command!r:.80}, which is no command here.")
    command: Command = msgspec.convert(ask.values, kind)
    return command


def view_of(ask: Ask) -> View | None:
    """The view that is asked for; None where a command is."""
    return None if ask.view is None else View(ask.view)


def told(number: int, value: JsonObject) -> Told:
    """An answer as it is sent."""
    return Told(number, value=value)


def faulty(number: int, error: Exception) -> Told:
    """A refusal as it is sent, in the control plane's words."""
    said = error_of(error)
    fault = Fault(str(said), said.status, said.kind, said.param, said.code, said.retry_after_s)
    return Told(number, fault=fault)


def answer_of(told_: Told) -> JsonObject:
    """The value that was answered, or the `RequestError` it was refused with."""
    fault = told_.fault
    if fault is not None:
        raise RequestError(
            fault.message,
            status=fault.status,
            kind=fault.kind,
            param=fault.param,
            code=fault.code,
            retry_after_s=fault.retry_after_s,
        )
    return told_.value or {}
