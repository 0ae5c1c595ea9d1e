"""What survives a restart: the journal joined to the optimizer, and what is taken up from it again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from loadwise.decision import lastgood
from loadwise.decision.fault import ours
from loadwise.errors import ConfigurationError
from loadwise.logs import get_logger
from loadwise.optimizer.continuity import PREFIX, Continuity
from loadwise.optimizer.entries import Entry, ended, turned_away
from loadwise.optimizer.milestones import Milestones
from loadwise.optimizer.resumption import PREFIX as BELIEF
from loadwise.optimizer.resumption import Resumption
from loadwise.optimizer.trust import Trust
from loadwise.ports import Feedback, JsonObject
from loadwise.settings import OptimizationConfig
from loadwise.telemetry import names
from loadwise.telemetry.history import History
from loadwise.telemetry.journal import records
from loadwise.telemetry.journal.changes import Change, ChangeKind, changes_of
from loadwise.telemetry.journal.events import Configured, Event, Stepped
from loadwise.telemetry.journal.journal import Journal, JournalError
from loadwise.telemetry.journal.reader import Reader, UnreadableError
from loadwise.telemetry.journal.store import Scored

if TYPE_CHECKING:
    from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer

log = get_logger(__name__)
# Changes in memory.
KEPT: Final = 1_000
# Names of what is kept of applied configurations: counts, which change often, and the settings.
MEASURED: Final = "configurations_measured"
VERSIONS: Final = "configurations"
# The part of the loop that it counts as.
JOURNAL: Final = "journal"


class Chronicle:
    """Remembers what changed; with a journal it also outlives the process. Without one nothing is on disk."""

    def __init__(self, optimizer: ServerSideOptimizer) -> None:
        self._optimizer = optimizer
        self._clock = optimizer.clock
        self._config = optimizer.config
        self.journal: Journal | None = None
        self._changes: History[Change] = History(KEPT)
        # How many changes there were since the start.
        self.heard = 0
        # What was kept last of the applied configurations.
        self._measured: lastgood.History | None = None
        self._version: int | None = None
        # Events that the journal had lost at the last look, and when more were.
        self._lost, self._lost_s = 0, float("-inf")
        optimizer.telemetry.count(names.JOURNAL_DROPPED, by=0.0)
        self._resumption = Resumption(optimizer.ensemble_manager, optimizer.clock)
        self._continuity = Continuity(optimizer.recorder.experiments)
        self.trust = Trust(optimizer.ensemble_manager, optimizer.clock, self._continuity.scored)
        self._milestones = Milestones(optimizer.model_compiler, optimizer.recorder.experiments.rollouts)
        optimizer.ensemble_manager.listener = self._heard
        optimizer.configurations.on_applied(self._configured)

    # --- beginning and end ---

    async def open(self, journal: Journal) -> None:
        """The journal is written from now on, and what it kept is known again."""
        await asyncio.to_thread(journal.open)
        await asyncio.to_thread(self._restore, journal)
        self.journal = journal
        self._optimizer.ensemble_manager.witness = journal.take
        self._checkpoint()

    async def close(self) -> None:
        """Everything that happened is on disk; nothing happens without a journal."""
        self._optimizer.ensemble_manager.witness = None
        self._checkpoint()
        if self.journal is not None:
            self.journal.keep(self._resumption.news(now=True))
        journal, self.journal = self.journal, None
        if journal is not None:
            await asyncio.to_thread(journal.close)

    def _restore(self, journal: Journal) -> None:
        try:
            with Reader(journal.folder) as reader:
                journal.keep(self._continuity.take_up(reader.kept_under(PREFIX), self._clock.monotonic_s()))
                entries = _entries(reader, self._optimizer.config.metrics_history_size)
                changes, said = reader.changes()[-KEPT:], reader.feedback()
                checkpoints, beliefs = _checkpoints(reader), reader.kept_under(BELIEF)
        except (UnreadableError, msgspec.MsgspecError, ConfigurationError) as error:
            # The journal says itself what is wrong with it; serving begins with an empty history.
            log.warning("history_not_restored", reason=str(error))
            return
        self._resumption.take_up(beliefs)
        self._take_up(entries, changes, said)
        if checkpoints is not None:
            self._optimizer.configurations.recall(*checkpoints)

    def _take_up(self, entries: list[Entry], changes: list[Change], said: list[Scored]) -> None:
        for entry in entries:
            self._optimizer.recorder.history.add(entry)
        for change in changes:
            self._changes.add(change)
        self.heard += len(changes)
        self.trust.restore(said)

    def _checkpoint(self) -> None:
        """Experiments, rollouts and applied configurations are kept, each where it changed."""
        if self.journal is not None:
            if self.journal.taken_over:
                self._take_over(self.journal)
            self.keep()
            self.journal.keep({**self._applied(), **self._resumption.news()})

    def keep(self) -> None:
        """What experiments and rollouts know now outlives the process."""
        if self.journal is not None:
            opened = self._optimizer.director.in_flight.by_block()
            self.journal.keep(self._continuity.news(opened, self._clock.monotonic_s()))

    def _applied(self) -> dict[str, bytes]:
        """Applied configurations, with what was measured under each."""
        configurations = self._optimizer.configurations
        history = configurations.history
        if history is self._measured:
            return {}
        self._measured = history
        found = {MEASURED: msgspec.msgpack.encode(history)}
        if configurations.version != self._version:
            self._version = configurations.version
            found[VERSIONS] = msgspec.json.encode(configurations.payloads())
        return found

    # --- what happens ---

    def look(self) -> None:
        """Builds that ended and rollouts that moved are known, and what experiments know now outlives us."""
        for event in self._milestones.since(self._clock.monotonic_s()):
            self._optimizer.ensemble_manager.tell(event)
        self._checkpoint()
        if self.journal is not None:
            # What is known once a second is on disk at once: a kill loses no more than that second.
            self.journal.wake()

    def _take_over(self, journal: Journal) -> None:
        """The server that wrote the journal has ended: what it went on to measure goes on here, once."""
        now_s = self._clock.monotonic_s()
        kept: Mapping[str, bytes] = {}
        try:
            with Reader(journal.folder) as reader:
                kept = reader.kept_under(PREFIX)
                said, checkpoints = reader.feedback(), _checkpoints(reader)
        except (UnreadableError, msgspec.MsgspecError, ConfigurationError) as error:
            log.warning("history_not_restored", reason=str(error))
        else:
            self.trust.restore(said)
            if checkpoints is not None:
                self._optimizer.configurations.recall(*checkpoints)
        # Where nothing could be read all of ours is kept.
        aside = self._continuity.take_over(kept, now_s)
        self._measured, self._version = None, None
        self._resumption.renew()
        opened = self._optimizer.director.in_flight.by_block()
        journal.replace(
            {**aside, **self._continuity.news(opened, now_s), **self._applied(), **self._resumption.news()}
        )
        log.info("journal_taken_over", path=str(journal.folder))

    def _heard(self, event: Event) -> None:
        offset_s = self._clock.wall_s() - self._clock.monotonic_s()
        for change in changes_of(event, offset_s):
            self._changes.add(change)
            self.heard += 1
        # Beliefs fade, and members come and go.
        self.trust.apply()
        if not isinstance(event, Stepped):
            # Steps come with every look, and more often under a surge.
            self._checkpoint()
        self._watch()

    def _watch(self) -> None:
        """A journal that cannot be written is a fault of the loop's: shown, counted, and gone when it is."""
        lost = 0 if self.journal is None else self.journal.lost
        if lost > self._lost:
            self._lost_s = self._clock.monotonic_s()
            self._optimizer.telemetry.count(names.JOURNAL_DROPPED, by=float(lost - self._lost))
        self._lost = lost
        fault = None if self.journal is None else self.journal.fault
        if fault is None:
            self._optimizer.cycle.recovered(JOURNAL)
        else:
            self._optimizer.cycle.failed(JOURNAL, JournalError(fault))

    def _configured(self, config: OptimizationConfig, version: int) -> None:
        before, after = self._config.model_dump(mode="json"), config.model_dump(mode="json")
        self._config = config
        changed = {
            name: {"from": before[name], "to": after[name]} for name in after if before[name] != after[name]
        }
        applied = self._optimizer.configurations
        self._optimizer.ensemble_manager.tell(
            Configured(self._clock.monotonic_s(), version, changed, applied.put_back, applied.applied_by)
        )

    def lost_ago_s(self, now_s: float) -> float | None:
        """Seconds since the journal last lost events; None where it never did."""
        return now_s - self._lost_s if self._lost_s > float("-inf") else None

    async def give(self, feedback: Feedback) -> JsonObject:
        """Feedback is journaled and counts; see `Trust.give`."""
        return await self.trust.give(self.journal, feedback)

    # --- what is shown ---

    def changes(self, within_s: float | None = None, kind: ChangeKind | None = None) -> list[JsonObject]:
        """What changed within the last `within_s` seconds (None: all that is known), oldest first."""
        since_s = float("-inf") if within_s is None else self._clock.wall_s() - within_s
        wanted: Callable[[Change], bool] = lambda c: c.at_s >= since_s and kind in (None, c.kind)  # noqa: E731
        return [change.as_json() for change in self._changes if wanted(change)]

    def newest(self) -> Iterator[Change]:
        """All changes that are known, newest first."""
        return reversed(self._changes)

    def as_json(self) -> JsonObject | None:
        """The journal's own state; None where none is kept."""
        if self.journal is None:
            return None
        return {
            **self.journal.as_json(),
            "begun_anew": {**self._continuity.set_aside, **self._resumption.begun_anew},
        }


def _entries(reader: Reader, most: int) -> list[Entry]:
    """The last outcomes of dispatched requests and the last refusals, oldest first."""
    found: list[Entry] = []
    for batch in reader.latest():
        entries = (_entry(row, batch.offset_s) for row in reversed(batch.rows))
        found += [entry for entry in entries if entry is not None]
        if len(found) >= most:
            break
    return found[:most][::-1]


def _entry(row: records.Record, offset_s: float) -> Entry | None:
    match row:
        case records.Ended() if row.started_s is not None:
            return ended(row.outcome.finished_s + offset_s, row.outcome, row.strategy, row.within)
        case records.TurnedAway() if row.model is not None and ours(row.status):
            return turned_away(row.now_s + offset_s, row.model)
    return None


def _checkpoints(reader: Reader) -> tuple[lastgood.History, dict[str, OptimizationConfig]] | None:
    """The applied configurations that were kept, oldest first."""
    measured, versions = reader.kept(MEASURED), reader.kept(VERSIONS)
    if measured is None or versions is None:
        return None
    history = msgspec.msgpack.decode(measured, type=lastgood.History)
    payloads = msgspec.json.decode(versions, type=dict[str, dict[str, Any]])
    return history, {name: OptimizationConfig(**values) for name, values in payloads.items()}
