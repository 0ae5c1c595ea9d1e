"""What became of builds and rollouts, told once each when it happened: they end away from any request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from loadwise.compiler import ModelCompiler
from loadwise.optimizer.rollouts import Rollouts
from loadwise.telemetry.journal.events import Built, Rolled

# States in which a build stays.
ENDS: Final = frozenset({"promoted", "variant", "failed", "declined"})


class _Seen(NamedTuple):
    state: str
    build_id: str | None
    cause: str
    failures: int


class Milestones:
    """Compares what is with what was at the last look."""

    def __init__(self, compiler: ModelCompiler, rollouts: Rollouts) -> None:
        self._compiler = compiler
        self._rollouts = rollouts
        self._builds: dict[tuple[str, str], _Seen] = {}
        self._shares: dict[tuple[str, str | None], float] = {}

    def since(self, now_s: float) -> Iterator[Built | Rolled]:
        """What ended, was put back, or moved since the last call."""
        yield from self._ended(now_s)
        yield from self._moved(now_s)

    def _ended(self, now_s: float) -> Iterator[Built]:
        for model_id, found in self._compiler.compilation_stats.items():
            for mode, build in found["builds"].items():
                seen = _Seen(build["state"], build["id"], build["cause"], build["failures"])
                before = self._builds.get((model_id, mode))
                self._builds[model_id, mode] = seen
                if seen.state in ENDS and seen != before:
                    yield Built(now_s, model_id, mode, _became(before, seen), _why(seen, build))

    def _moved(self, now_s: float) -> Iterator[Rolled]:
        for rollout in self._rollouts.as_json(now_s):
            subject = rollout["route"], rollout["key"]
            before, self._shares[subject] = self._shares.get(subject), rollout["share"]
            if before is not None and before != rollout["share"]:
                yield Rolled(now_s, *subject, before, rollout["share"], rollout["reason"])


def _became(before: _Seen | None, seen: _Seen) -> str:
    """The state; `reverted` for one that served, `failed` for a rebuild beside one that serves on."""
    if before is None or before.state != "promoted":
        return seen.state
    if seen.state != "promoted":
        return "reverted"
    return "failed" if seen.failures > before.failures else seen.state


def _why(seen: _Seen, build: dict[str, Any]) -> str:
    speedup = build.get("speedup")
    measured = "verified" if speedup is None else f"{speedup:.2f} times as fast as the original"
    return seen.cause or ("kept from an earlier start" if build.get("kept") else measured)
