"""Named versions of a model or a configuration: register, activate, roll back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loadwise.clock import SystemClock, iso_utc
from loadwise.decision.facts import Number
from loadwise.errors import ConfigurationError, UnknownNameError
from loadwise.logs import get_logger
from loadwise.ports import Clock, JsonObject
from loadwise.telemetry.history import History

log = get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Version:
    """One named version of a model or configuration, with what was measured under it."""

    name: str
    version: str
    payload: Any
    registered_s: float
    # It served within its objectives while it was active.
    good: bool = False
    # An operator applied it again after it was taken back: it stays.
    pinned: bool = False
    # It was taken back once for its regression.
    reverted: bool = False
    measured: Mapping[str, float | None] = field(default_factory=dict)

    def as_json(self, *, active: bool) -> JsonObject:
        """Everything but the payload."""
        return {
            "name": self.name,
            "version": self.version,
            "registered": iso_utc(self.registered_s),
            "active": active,
            "good": self.good,
            "pinned": self.pinned,
            "reverted": self.reverted,
            "measured": dict(self.measured),
        }


class DynamicModelManager:
    """Keeps versions by name, knows which is active, and returns to the last good one.

    At most `max_versions` of a name are kept: the oldest that is neither active nor the last good
    one goes first. Registering activates only the first version of a name.
    """

    def __init__(
        self, *, max_versions: int = 20, history_size: int = 1000, clock: Clock | None = None
    ) -> None:
        self._clock: Clock = clock or SystemClock()
        self._max_versions = max_versions
        self._versions: dict[str, dict[str, Version]] = {}
        self._numbers: Counter[str] = Counter()
        # Per name, the versions in the order they became active; the last is active.
        self._activations: dict[str, list[str]] = {}
        self._history: History[JsonObject] = History(history_size)
        # Generation parameters in force (max_tokens, temperature, top_k); empty before the first strategy.
        self.parameters: dict[str, Number] = {}

    def register(self, name: str, payload: Any, version: str | None = None) -> str:
        """The version's name under which `payload` is kept (v1, v2 ... unless given)."""
        versions = self._versions.setdefault(name, {})
        version = version or self._next_name(name)
        if version in versions:
            raise ConfigurationError(
                f"{name!r} already has a version {version!r}; versions never change. Register another name.",
                field="version",
            )
        versions[version] = Version(
            name=name, version=version, payload=payload, registered_s=self._clock.wall_s()
        )
        self._record("registered", name, version)
        if name not in self._activations:
            self.activate(name, version)
        self._forget_old(name, version)
        return version

    def recall(self, name: str, payloads: Mapping[str, Any]) -> None:
        """Earlier versions, oldest first, are known again; the active one and later ones stay as they are."""
        known = self._versions.setdefault(name, {})
        now_s = self._clock.wall_s()
        earlier = {
            version: Version(name=name, version=version, payload=payload, registered_s=now_s)
            for version, payload in payloads.items()
            if version not in known
        }
        self._versions[name] = {**earlier, **known}

    def _next_name(self, name: str) -> str:
        """A name never used before, also by versions since forgotten."""
        while True:
            self._numbers[name] += 1
            version = f"v{self._numbers[name]}"
            if version not in self._versions[name]:
                return version

    def _forget_old(self, name: str, newest: str) -> None:
        versions = self._versions[name]
        kept = {self.active(name).version, self.last_good(name), newest}
        for version in [v for v in versions if v not in kept][: max(0, len(versions) - self._max_versions)]:
            del versions[version]
            self._activations[name] = [v for v in self._activations[name] if v != version]

    def get(self, name: str, version: str | None = None) -> Any:
        """The payload of a version, the active one unless named; `UnknownNameError` if there is none."""
        return (self.active(name) if version is None else self._find(name, version)).payload

    def active(self, name: str) -> Version:
        """The version of `name` that is active; `UnknownNameError` if there is none."""
        if not self._activations.get(name):
            known = ", ".join(sorted(self._versions)) or "none yet"
            raise UnknownNameError(f"Nothing is registered as {name!r}. Known: {known}.")
        return self._versions[name][self._activations[name][-1]]

    def _find(self, name: str, version: str) -> Version:
        try:
            return self._versions[name][version]
        except KeyError:
            known = ", ".join(self._versions.get(name, {})) or "none"
            raise UnknownNameError(f"{name!r} has no version {version!r}. Known: {known}.") from None

    def activate(self, name: str, version: str, *, reason: str = "operator") -> Any:
        """Makes a version active and returns its payload.

        A version that was taken back and is activated by an operator again is pinned: it stays.
        """
        found = self._find(name, version)
        activations = self._activations.setdefault(name, [])
        if reason == "operator" and found.reverted:
            found.pinned = True
        if not activations or activations[-1] != version:
            activations.append(version)
            # The activations' order is needed for one way back per version, no more.
            del activations[: max(0, len(activations) - self._max_versions)]
        self._record("activated", name, version, reason=reason)
        return found.payload

    def rollback(self, name: str) -> Any:
        """Makes the version before the active one active again and returns its payload."""
        active = self.active(name).version
        activations = self._activations[name]
        earlier = [v for v in activations[:-1] if v != active]
        if not earlier:
            raise UnknownNameError(f"{name!r} has no version before {active!r} to roll back to.")
        while activations[-1] != earlier[-1]:
            activations.pop()
        self._record("rolled back", name, earlier[-1], was=active)
        return self._versions[name][earlier[-1]].payload

    def record_performance(
        self, name: str, *, within_objectives: bool, measured: Mapping[str, float | None] | None = None
    ) -> Any:
        """Keeps what was measured under the active version, over enough requests to judge it by.

        Within objectives, it is known as good. Outside, the last good version is active again: once per
        change, and never in place of a pinned one. Returns the payload that is active afterwards.
        """
        version = self.active(name)
        version.measured = dict(measured or {})
        version.good = within_objectives
        if not within_objectives:
            self.restore_last_good(name)
        return self.get(name)

    def last_good(self, name: str) -> str | None:
        """The version, other than the active one, that last served within its objectives; else None."""
        activations = self._activations.get(name, [])
        for version in reversed(activations[:-1]):
            if version != activations[-1] and self._versions[name][version].good:
                return version
        return None

    def restore_last_good(self, name: str, *, reason: str = "regression") -> Any | None:
        """Puts the last good version back, once per change; None when there is nothing to put back.

        A pinned version stays.
        """
        version, active = self.last_good(name), self.active(name)
        if version is None or active.pinned or active.reverted:
            return None
        active.reverted = True
        log.warning("last_good_restored", name=name, was=active.version, now=version, reason=reason)
        return self.activate(name, version, reason=reason)

    def versions(self, name: str) -> list[JsonObject]:
        """All versions of a name, oldest first, without their payloads."""
        active = self.active(name).version
        return [v.as_json(active=v.version == active) for v in self._versions[name].values()]

    def apply_parameters(self, parameters: Mapping[str, Number]) -> None:
        """The generation parameters in force are these; a change is kept in the history."""
        if dict(parameters) != self.parameters:
            self.parameters = dict(parameters)
            shown = {name: str(value) for name, value in parameters.items()}
            self._record("parameters", "generation", "", **shown)

    def resize_history(self, size: int) -> None:
        """Keeps at most `size` events from now on, the newest."""
        self._history.resize(size, enabled=True)

    def names(self) -> list[str]:
        """Everything that has versions."""
        return sorted(self._versions)

    def history(self) -> list[JsonObject]:
        """What was registered, activated and rolled back, oldest first; bounded."""
        return list(self._history)

    def _record(self, event: str, name: str, version: str, **details: str) -> None:
        at = iso_utc(self._clock.wall_s())
        self._history.add({"time": at, "event": event, "name": name, "version": version, **details})
