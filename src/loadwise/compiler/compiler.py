"""`ModelCompiler`: builds in the background, verifies, measures, promotes; the original serves otherwise."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from loadwise.clock import SystemClock
from loadwise.compiler.attempt import Attempt
from loadwise.compiler.backends import default_backend
from loadwise.compiler.examples import Examples
from loadwise.compiler.parameters import in_training
from loadwise.compiler.served import Build, BuildState, ServedModel
from loadwise.decision.builds import ORIGINAL, BuildFact, BuildStatus, served_mode
from loadwise.errors import ConfigurationError, UnknownNameError
from loadwise.ports import BuildBackend, Clock
from loadwise.settings import OptimizationConfig

MODES = ("default", "reduce-overhead", "max-autotune")
_STATUSES = {
    BuildState.PROMOTED: BuildStatus.READY,
    BuildState.BUILDING: BuildStatus.BUILDING,
    BuildState.FAILED: BuildStatus.FAILED,
    BuildState.DECLINED: BuildStatus.FAILED,
}


class ModelCompiler:
    """Keeps one `ServedModel` per id. Builds run one at a time, on a thread and in a child process.

    `automatic`: the configured mode is built after a model's first call; False leaves that to `build`.
    """

    def __init__(
        self,
        config: OptimizationConfig | None = None,
        *,
        backend: BuildBackend | None = None,
        clock: Clock | None = None,
        automatic: bool = True,
    ) -> None:
        self.config = config or OptimizationConfig()
        self._backend = backend or default_backend()
        self._clock = clock or SystemClock()
        self._automatic = automatic
        self._wanted_mode: str = self.config.compile_mode
        self._models: dict[str, Any] = {}
        self._declined: dict[str, Build] = {}
        self._jobs: queue.SimpleQueue[tuple[ServedModel, str, threading.Event] | None] = queue.SimpleQueue()
        self._pending = 0
        self._idle = threading.Condition()
        self._closed = False
        # Of the builds asked for from now on; set when they are no longer wanted.
        self._stop = threading.Event()
        self._attempt = Attempt(self._backend, self._clock)
        self._worker: threading.Thread | None = None

    def compile_model(
        self,
        model: Any,
        model_id: str,
        *,
        examples: Callable[[], Sequence[tuple[Any, ...]]] | None = None,
        dynamic_shapes: Any = None,
    ) -> Any:
        """A callable that answers as `model` does, at once; later by a verified, faster build.

        What is not a torch module comes back unchanged. `examples` gives arguments to build for; without
        it they are learned from the first calls. `dynamic_shapes` is torch.export's.
        """
        known = self._models.get(model_id)
        if isinstance(known, ServedModel) and known.original is model:
            return known
        self._declined.pop(model_id, None)
        if isinstance(model, ServedModel):
            self._models[model_id] = model
            return model
        if not _is_module(model):
            self._models[model_id] = model
            self._declined[model_id] = Build(
                mode=self.config.compile_mode,
                state=BuildState.DECLINED,
                changed_s=self._clock.monotonic_s(),
                cause="not a torch module",
                remedy="It is served as it is; give a torch.nn.Module to have it compiled.",
            )
            return model
        served = ServedModel(model, model_id, Examples(examples), self._first_call)
        served.dynamic_shapes = dynamic_shapes
        self._models[model_id] = served
        if examples is not None:
            self._first_call(served)
        return served

    def get_compiled_model(self, model_id: str) -> Any | None:
        """The callable that serves `model_id`, or None for an unknown id."""
        return self._models.get(model_id)

    def build(self, model_id: str, mode: str | None = None) -> bool:
        """Queues a build; False, with the reason in the stats, when none can be made now.

        Raises `UnknownNameError` for an id never given, `ConfigurationError` for an unknown mode.
        """
        wanted = mode or self.config.compile_mode
        if wanted not in MODES:
            raise ConfigurationError(
                f"Unknown compile_mode {wanted!r}. Choose {', '.join(MODES)}.", field="compile_mode"
            )
        served = self._named(model_id)
        return isinstance(served, ServedModel) and self._queue(served, wanted)

    def force_recompile(self, model_id: str | None = None) -> list[str]:
        """Real rebuilds of one model, or of all, are queued now: their ids. Old builds serve meanwhile."""
        names = list(self._models) if model_id is None else [model_id]
        return [name for name in names if self.build(name, self._wanted_mode)]

    def serve_mode(self, mode: str) -> None:
        """Each model is served by its build of `mode`, or the best other one that is built."""
        self._wanted_mode = mode
        for served in self._served():
            self._activate(served)

    def facts(self) -> list[BuildFact]:
        """Every build as the planner wants to know it; what cannot be tried now counts as just failed."""
        facts = [fact for served in self._served() for fact in self._facts_of(served)]
        return facts + [self._resting(model_id, mode) for model_id in list(self._declined) for mode in MODES]

    def _facts_of(self, served: ServedModel) -> list[BuildFact]:
        made = {mode: build for mode, build in dict(served.builds).items() if build.state in _STATUSES}
        facts = [
            BuildFact(
                model_id=served.model_id,
                mode=mode,
                status=_STATUSES[build.state],
                changed_s=build.changed_s,
                failures=build.failures,
                stale=build.stale,
            )
            for mode, build in made.items()
        ]
        if self._obstacle(served) is not None:
            facts += [self._resting(served.model_id, mode) for mode in MODES if mode not in made]
        return facts

    def _resting(self, model_id: str, mode: str) -> BuildFact:
        return BuildFact(
            model_id=model_id,
            mode=mode,
            status=BuildStatus.FAILED,
            changed_s=self._clock.monotonic_s(),
            failures=1,
        )

    @property
    def compilation_stats(self) -> dict[str, dict[str, Any]]:
        """Per model: state, serving mode, times in ms, speed-up, cause, remedy, and each build's own."""
        stats = {
            name: {"mode": None, **build.stats(), "builds": {}} for name, build in self._declined.items()
        }
        return stats | {served.model_id: _stats(served) for served in self._served()}

    def wait(self, timeout_s: float | None = None) -> bool:
        """Blocks until no build is queued or running; False when that took longer."""
        with self._idle:
            return self._idle.wait_for(lambda: self._pending == 0, timeout_s)

    def stop_builds(self) -> None:
        """Builds that wait or run end without a result; what is promoted serves, more may be asked for."""
        with self._idle:
            self._stop.set()
            self._stop = threading.Event()

    def close(self) -> None:
        """Ends the build in progress; what is promoted goes on serving. May be called twice."""
        self._closed = True
        self.stop_builds()
        worker, self._worker = self._worker, None
        if worker is not None:
            self._jobs.put(None)
            worker.join()

    def _served(self) -> list[ServedModel]:
        return [model for model in list(self._models.values()) if isinstance(model, ServedModel)]

    def _named(self, model_id: str) -> Any:
        if model_id not in self._models:
            known = ", ".join(sorted(self._models)) or "none yet"
            raise UnknownNameError(f"No model {model_id!r} has been given to compile_model. Known: {known}.")
        return self._models[model_id]

    def _first_call(self, served: ServedModel) -> None:
        if self._automatic:
            self._queue(served, self.config.compile_mode)

    def _queue(self, served: ServedModel, mode: str) -> bool:
        obstacle = self._obstacle(served)
        if obstacle is not None:
            served.cause, served.remedy = obstacle
            return False
        served.cause = served.remedy = ""
        with self._idle:
            if mode not in served.queued:
                self._enqueue(served, mode)
        return True

    def _enqueue(self, served: ServedModel, mode: str) -> None:
        old = served.builds.get(mode)
        if old is None or old.built is None:
            failures = 0 if old is None else old.failures
            served.builds[mode] = Build(
                mode=mode,
                state=BuildState.BUILDING,
                changed_s=self._clock.monotonic_s(),
                failures=failures,
            )
        served.queued.add(mode)
        self._pending += 1
        self._jobs.put((served, mode, self._stop))
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="model-compiler", daemon=True)
            self._worker.start()

    def _obstacle(self, served: ServedModel) -> tuple[str, str] | None:
        """Cause and remedy of not even trying."""
        if not self.config.enable_torch_compile:
            return "switched off", "Set enable_torch_compile to true."
        if self._closed:
            return "the compiler was closed", "Make a new ModelCompiler."
        if in_training(served.original):
            return "the model is in training mode", "Call model.eval(), then force_recompile."
        if not served.examples.known:
            return (
                "no call seen yet whose arguments can be copied, so no shapes to build for",
                "Call the model once with tensors and plain values, or pass examples.",
            )
        availability = self._backend.available()
        if not availability.ok:
            return f"unavailable: {availability.reason}", f"Install {availability.reason}; see 'make doctor'."
        return None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            served, mode, stop = job
            try:
                self._settle(served, self._attempt(served, mode, self.config, stop))
            finally:
                with self._idle:
                    served.queued.discard(mode)
                    self._pending -= 1
                    self._idle.notify_all()

    def _settle(self, served: ServedModel, build: Build) -> None:
        old = served.builds.get(build.mode)
        failed = build.state in (BuildState.FAILED, BuildState.DECLINED)
        build.failures = failed + (old.failures if old is not None and build.built is None else 0)
        if build.built is None and old is not None and old.built is not None:
            # A rebuild that failed does not take away what serves.
            old.failures, old.cause, old.remedy = build.failures, build.cause, build.remedy
            return
        served.builds[build.mode] = build
        self._activate(served)

    def _activate(self, served: ServedModel) -> None:
        ready = {
            (served.model_id, build.mode)
            for build in list(served.builds.values())
            if build.built is not None and not build.stale
        }
        mode = served_mode(self._wanted_mode, served.model_id, ready)
        served.active = None if mode == ORIGINAL else served.builds[mode]


def _is_module(model: Any) -> bool:
    """Without torch in the process nothing can be one, and nothing needs to be imported to know."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def _stats(served: ServedModel) -> dict[str, Any]:
    builds = dict(served.builds)
    active = served.active
    if active is not None and active.stale:
        active = None
    shown = active or max(builds.values(), key=lambda build: build.changed_s, default=None)
    if shown is None:
        shown = Build(mode="", state=BuildState.ORIGINAL)
    stats = shown.stats()
    if not stats["cause"]:
        stats |= {"cause": served.cause, "remedy": served.remedy}
    return {
        "mode": None if active is None else active.mode,
        **stats,
        "builds": {mode: build.stats() for mode, build in builds.items()},
    }
