"""The configuration in force: its versions, what was measured under each, and the way back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from loadwise.clock import SystemClock
from loadwise.decision import lastgood
from loadwise.decision.alert_facts import Rollback
from loadwise.decision.facts import Policy
from loadwise.decision.lastgood import History, Verdict
from loadwise.errors import ConflictError, LoadwiseError
from loadwise.logs import get_logger
from loadwise.optimizer.config_store import ChangedError, ConfigStore, Kept, fingerprint
from loadwise.optimizer.model_manager import DynamicModelManager
from loadwise.ports import Clock, JsonObject
from loadwise.settings import OptimizationConfig

log = get_logger(__name__)
NAME = "configuration"


class Configurations:
    """Applies configurations to those who listen, keeps versions, and puts the last good one back."""

    def __init__(
        self,
        config: OptimizationConfig,
        manager: DynamicModelManager,
        *,
        store: ConfigStore | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock: Clock = clock or SystemClock()
        self._manager = manager
        self._store = store or ConfigStore(None, config)
        self.current, self.version = self._store.load()
        # The configuration in force as the core reads it: one object for as long as it is.
        self.policy: Policy = self.current.policy()
        self._listeners: list[Callable[[OptimizationConfig, int], None]] = []
        self._history: History = lastgood.applied(
            History(), self.version, fingerprint(self.current), self._clock.monotonic_s()
        )
        self.verdict: Verdict | None = None
        # The latest automatic way back: when, from which version, to which, on what evidence.
        self._rolled_back: tuple[float, int, int, Verdict] | None = None
        self._applying = asyncio.Lock()
        manager.register(NAME, self.current, f"v{self.version}")

    def on_applied(self, listener: Callable[[OptimizationConfig, int], None]) -> None:
        """Tells `listener` of every configuration that is applied."""
        self._listeners.append(listener)

    @property
    def put_back(self) -> bool:
        """Whether the configuration in force was put back because a later one regressed."""
        return bool(self._history.applied) and self._history.applied[-1].reverted

    @property
    def history(self) -> History:
        """The applied configurations with what was measured under each."""
        return self._history

    def payloads(self) -> dict[str, JsonObject]:
        """The configurations of the history by version, as JSON values."""
        names = [f"v{found.version}" for found in self._history.applied]
        return {name: self._manager.get(NAME, name).model_dump(mode="json") for name in names}

    def recall(self, history: History, payloads: Mapping[str, OptimizationConfig]) -> bool:
        """Takes up a history that led to the configuration in force; any other is left alone (False)."""
        latest = history.applied[-1] if history.applied else None
        mine = (self.version, fingerprint(self.current))
        if latest is None or (latest.version, latest.fingerprint) != mine or len(self._history.applied) > 1:
            return False
        known = {f"v{found.version}" for found in history.applied[:-1]} & payloads.keys()
        now_s = self._clock.monotonic_s()
        self._history = replace(
            history,
            applied=tuple(
                replace(found, applied_s=now_s)
                for found in history.applied
                if found is latest or f"v{found.version}" in known
            ),
        )
        self._manager.recall(NAME, {name: payloads[name] for name in payloads if name in known})
        return True

    def difference(self, config: OptimizationConfig) -> JsonObject:
        """The fields that would change, each with its present and its new value."""
        before, after = self.current.model_dump(mode="json"), config.model_dump(mode="json")
        return {
            name: {"from": before[name], "to": after[name]} for name in after if before[name] != after[name]
        }

    async def apply(self, config: OptimizationConfig, *, reverting: bool = False) -> int:
        """The configuration is in force and on disk; its version. An equal one changes nothing.

        Raises `LoadwiseError` when it cannot be kept on disk: nothing has changed then; `ConflictError` where
        another server of the state folder applied one meanwhile: that one is in force then.
        """
        async with self._applying:
            if config == self.current and not reverting:
                return self.version
            version = self.version + 1
            await self._save(config, version, reverting=reverting)
            self._put_into_force(config, version, reverting=reverting)
            return version

    async def follow(self) -> None:
        """What another server of the state folder applied is in force here too."""
        async with self._applying:
            found = await asyncio.to_thread(self._store.changed)
            if found is not None:
                self._adopt(found)

    @property
    def applied_by(self) -> str:
        """Who applied the configuration in force, for people; empty for this process."""
        latest = self._store.latest
        return "" if latest is None or self._store.ours else latest.writer

    async def _save(self, config: OptimizationConfig, version: int, *, reverting: bool) -> None:
        try:
            await asyncio.to_thread(self._store.save, config, version, reverting=reverting)
        except ChangedError as error:
            self._adopt(error.kept)
            raise ConflictError(
                f"Another server of this state folder ({error.kept.writer}) applied a configuration "
                f"meanwhile. It is in force here as version {self.version}; yours was not applied. Look at "
                "GET /v1/optimization/status and send your change again, if it is still wanted."
            ) from error
        except OSError as error:
            raise LoadwiseError(
                f"The configuration was not applied: it cannot be kept under state_dir ({error}). "
                "Make that folder writable, or set another state_dir."
            ) from error

    def _adopt(self, found: Kept) -> None:
        version = max(found.version, self.version + 1)
        log.warning("configuration_followed", version=version, applied_by=found.writer)
        self._put_into_force(found.config, version, reverting=found.reverting)

    def _put_into_force(self, config: OptimizationConfig, version: int, *, reverting: bool) -> None:
        self.current, self.version, self.policy = config, version, config.policy()
        self._history = lastgood.applied(
            self._history, version, fingerprint(config), self._clock.monotonic_s(), reverting=reverting
        )
        self._manager.register(NAME, config, f"v{version}")
        self._manager.activate(NAME, f"v{version}", reason="regression" if reverting else "operator")
        for listener in self._listeners:
            listener(config, version)
        log.info("configuration_applied", version=version, reverting=reverting)

    def count(self, load_score: float | None, within_objectives: bool | None) -> None:
        """Counts a request served under the present configuration; None says nothing."""
        if within_objectives is not None:
            self._history = lastgood.counted(self.policy, self._history, load_score, within=within_objectives)

    async def judge(self) -> Verdict:
        """The core's verdict; where it says so, the last good configuration is in force again."""
        self.verdict = verdict = lastgood.judge(self._history)
        if verdict.revert_to is not None:
            log.warning("configuration_regressed", version=self.version, back_to=verdict.revert_to)
            self._rolled_back = self._clock.monotonic_s(), self.version, verdict.revert_to, verdict
            good = self._manager.get(NAME, f"v{verdict.revert_to}")
            # Where another server applied one meanwhile, that one is judged first.
            with suppress(ConflictError):
                await self.apply(good, reverting=True)
        return verdict

    def rollback(self, now_s: float) -> Rollback | None:
        """The latest configuration that was taken back by itself; None before the first."""
        if self._rolled_back is None:
            return None
        at_s, version, back_to, verdict = self._rolled_back
        return Rollback(
            from_version=version,
            to_version=back_to,
            seconds_ago=now_s - at_s,
            now_fraction=verdict.now_fraction,
            good_fraction=verdict.good_fraction,
        )

    def as_json(self) -> JsonObject:
        """Versions, newest last, with what was measured under each, and the last verdict."""
        verdict = self.verdict
        judged = {f"v{found.version}": self._judged(found) for found in self._history.applied}
        return {
            "version": self.version,
            "applied_by": self._written(),
            "versions": [
                {**version, **judged.get(version["version"], {})} for version in self._manager.versions(NAME)
            ],
            # A file of applied configurations that could not be understood.
            "set_aside": None if self._store.set_aside is None else str(self._store.set_aside),
            "last_known_good": None if verdict is None else verdict.reason.value,
        }

    def _written(self) -> JsonObject | None:
        """Which process applied the configuration in force, and when; None for the settings' own."""
        latest = self._store.latest
        if latest is None:
            return None
        told = {"process": latest.process, "host": latest.host or None, "time": latest.time or None}
        return {**told, "this_process": self._store.ours}

    def _judged(self, found: lastgood.Applied) -> JsonObject:
        requests = sum(seen for seen, _ in found.levels)
        within = sum(met for _, met in found.levels)
        return {
            "good": found.good,
            "pinned": found.pinned,
            "reverted": found.fingerprint in self._history.rejected,
            "measured": {
                "requests": requests,
                "within_objectives_fraction": within / requests if requests else None,
            },
        }
