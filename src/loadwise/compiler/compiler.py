"""`ModelCompiler`: builds in the background, verifies, measures, promotes; the original serves otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from typing import Any

from loadwise.clock import SystemClock
from loadwise.compiler.attempt import Attempt
from loadwise.compiler.backlog import Backlog, Job
from loadwise.compiler.build import Build, BuildState, Stage, no_module
from loadwise.compiler.examples import Examples
from loadwise.compiler.obstacles import SERVING_GPU, gpus, obstacle, serving_gpus
from loadwise.compiler.parameters import is_module
from loadwise.compiler.served import ServedModel
from loadwise.compiler.stats import (
    build_facts,
    declined_facts,
    model_stats,
    original_s,
    pending_builds,
)
from loadwise.compiler.usage import Usage
from loadwise.compiler.watched import Watch
from loadwise.compiler.workshop import Workshop
from loadwise.decision.build_facts import BuildFact, BuildOption, ModelUse
from loadwise.decision.builds import ORIGINAL, served_mode
from loadwise.errors import ConfigurationError, UnknownNameError
from loadwise.ports import BuildBackend, Clock, Judge, Recipe
from loadwise.settings import OptimizationConfig


class ModelCompiler:
    """Keeps one `ServedModel` per id. Builds run one at a time, on a thread and in a child process.

    `automatic`: the configured mode is built after a model's first call; False leaves that to `build`.
    `busy` says whether requests are being answered: then a build computes for `build_share` of the time only.
    `drained` says whether a model answers none and will get none: then its GPU may build.
    """

    def __init__(
        self,
        config: OptimizationConfig | None = None,
        *,
        backend: BuildBackend | None = None,
        workshop: Workshop | None = None,
        clock: Clock | None = None,
        automatic: bool = True,
    ) -> None:
        self.config = config or OptimizationConfig()
        self.busy: Callable[[], bool] = lambda: False
        self.drained: Callable[[str], bool] = lambda model_id: False
        self._workshop = workshop or Workshop.of(backend)
        self._clock = clock or SystemClock()
        self._automatic = automatic
        self._wanted_mode: str = self.config.compile_mode
        self._models: dict[str, Any] = {}
        self._declined: dict[str, Build] = {}
        self._backlog = Backlog()
        self._attempt = Attempt(self._clock, self._share)
        # What was made before is opened beside requests, also on their GPU.
        self._opening = Attempt(self._clock, self._share_beside)
        self._ids = count(1)
        self._closed = False

    def compile_model(
        self,
        model: Any,
        model_id: str,
        *,
        examples: Callable[[], Sequence[tuple[Any, ...]]] | None = None,
        dynamic_shapes: Any = None,
        recipe: Recipe | None = None,
        repeatable: bool = False,
        judge: Judge | None = None,
        prepare: Callable[[], None] = lambda: None,
        buckets: Callable[[], Iterable[tuple[Any, ...]]] = tuple,
    ) -> Any:
        """A callable that answers as `model` does, at once; later by a verified, faster build.

        What is not a torch module comes back unchanged. `examples` gives arguments to build for; without
        it they are learned from the first calls. `dynamic_shapes` is torch.export's. With a `recipe` another
        process traces the model. `repeatable`: a call twice with the same arguments leaves them as once.
        `judge` compares a build with the model on more than examples; `buckets` are calls of all sizes that
        are served. `prepare` sets up the thread that builds: a build is for as many threads as that has.
        """
        known = self._models.get(model_id)
        if isinstance(known, ServedModel) and known.original is model:
            return known
        self._declined.pop(model_id, None)
        if isinstance(model, ServedModel):
            self._models[model_id] = model
            return model
        if not is_module(model):
            self._models[model_id] = model
            self._declined[model_id] = no_module(self.config.compile_mode, self._clock.monotonic_s())
            return model
        usage = Usage(self._clock.monotonic_s())
        served = ServedModel(model, model_id, Examples(examples), usage, self._first_call)
        served.dynamic_shapes, served.recipe, served.repeatable = dynamic_shapes, recipe, repeatable
        served.judge, served.prepare, served.buckets = judge, prepare, buckets
        self._models[model_id] = served
        if examples is not None:
            self._first_call(served)
        return served

    def get_compiled_model(self, model_id: str) -> Any | None:
        """The callable that serves `model_id`, or None for an unknown id."""
        return self._models.get(model_id)

    def get_variant(self, model_id: str, mode: str) -> Callable[..., Any] | None:
        """A quantised build, a model of its own quality; None when there is none of that mode."""
        served = self._models.get(model_id)
        build = served.builds.get(mode) if isinstance(served, ServedModel) else None
        variant = build is not None and build.state is BuildState.VARIANT and not build.stale
        return build.built.call if variant and build is not None and build.built is not None else None

    def build(self, model_id: str, mode: str | None = None, *, forced: bool = False) -> bool:
        """Queues a build; False, with the reason in the stats, when none can be made now.

        Raises `UnknownNameError` for an id never given, `ConfigurationError` for an unknown mode.
        """
        wanted = mode or self.config.compile_mode
        if wanted not in self._workshop.modes:
            raise ConfigurationError(
                f"Unknown compile_mode {wanted!r}. Choose {', '.join(self._workshop.modes)}.",
                field="compile_mode",
            )
        served = self._named(model_id)
        return isinstance(served, ServedModel) and self._queue(served, wanted, forced)

    def force_recompile(self, model_id: str | None = None) -> list[str]:
        """Real rebuilds of one model, or of all, are queued now: their ids. Old builds serve meanwhile."""
        names = list(self._models) if model_id is None else [model_id]
        return [name for name in names if self.build(name, self._wanted_mode, forced=True)]

    def serve_mode(self, mode: str) -> None:
        """Each model is served by its build of `mode`, or the best other one that is built."""
        self._wanted_mode = mode
        for served in self._served():
            self._activate(served)

    def facts(self) -> list[BuildFact]:
        """Every build as the planner wants to know it; what cannot be tried now counts as just failed."""
        now_s, modes = self._clock.monotonic_s(), self._workshop.modes
        facts = [
            fact
            for served in self._served()
            for fact in build_facts(served, modes, now_s, (self._obstacle(served) or ("", ""))[0])
        ]
        return facts + declined_facts(dict(self._declined), modes, now_s)

    def options(self) -> list[BuildOption]:
        """The modes that can be built here."""
        return self._workshop.options()

    def uses(self) -> dict[str, ModelUse]:
        """How much each model is used, where that was observed for long enough."""
        now_s = self._clock.monotonic_s()
        found = {served.model_id: served.usage.read(now_s, original_s(served)) for served in self._served()}
        return {name: use for name, use in found.items() if use is not None}

    @property
    def compilation_stats(self) -> dict[str, dict[str, Any]]:
        """Per model: state, serving mode, times in ms, speed-up, cause, remedy, and each build's own."""
        stats = {
            name: {"mode": None, **build.stats(), "builds": {}} for name, build in self._declined.items()
        }
        return stats | {served.model_id: model_stats(served) for served in self._served()}

    def in_progress(self) -> list[dict[str, Any]]:
        """Builds that wait or run: id, model, mode, stage and seconds since they were asked for."""
        return pending_builds(self._served(), self._clock.monotonic_s())

    @property
    def store_problem(self) -> str:
        """Why builds are not kept for the next start; empty while they are, or while none should be."""
        return self._workshop.store_problem

    def wait(self, timeout_s: float | None = None) -> bool:
        """Blocks until no build is queued or running; False when that took longer."""
        return self._backlog.wait(timeout_s)

    def stop_builds(self, *, forced: bool = True) -> None:
        """Builds that wait or run end without a result; what is promoted serves, more may be asked for.

        Those that an operator forced go on where `forced` is False.
        """
        self._backlog.stop(forced=forced)

    def close(self) -> None:
        """Ends the build in progress; what is promoted goes on serving. May be called twice."""
        self._closed = True
        self._backlog.close()

    def _served(self) -> list[ServedModel]:
        return [model for model in list(self._models.values()) if isinstance(model, ServedModel)]

    def _named(self, model_id: str) -> Any:
        if model_id not in self._models:
            known = ", ".join(sorted(self._models)) or "none yet"
            raise UnknownNameError(f"No model {model_id!r} has been given to compile_model. Known: {known}.")
        return self._models[model_id]

    def _share(self, served: ServedModel, stop: threading.Event) -> float:
        if self._on_serving_gpu(served):
            # It was drained when its build began, and has been called back.
            stop.set()
        return self._share_beside(served, stop)

    def _share_beside(self, served: ServedModel, stop: threading.Event) -> float:
        return self.config.build_share if self.busy() else 1.0

    def _on_serving_gpu(self, served: ServedModel) -> bool:
        return bool(gpus(served) & self._serving_gpus())

    def _serving_gpus(self) -> frozenset[str]:
        return serving_gpus(self._served(), self.drained)

    def _first_call(self, served: ServedModel) -> None:
        # To open what is kept takes nothing from a GPU that serves but a few calls.
        if self._workshop.keeps and self._obstacle(served) in (None, SERVING_GPU):
            self._backlog.add(Job((served.model_id, ""), served.prepared(self._restore)))
        if self._automatic:
            self._queue(served, self.config.compile_mode, forced=False)

    def _queue(self, served: ServedModel, mode: str, forced: bool) -> bool:
        found = self._obstacle(served)
        if found is not None:
            served.cause, served.remedy = found
            return False
        served.cause = served.remedy = ""
        build = self._new_build(served, mode, forced)
        work = served.prepared(partial(self._work, build=build))
        if self._backlog.add(Job((served.model_id, mode), work, forced=forced)):
            served.pending[mode] = build
            old = served.builds.get(mode)
            if old is None or old.built is None:
                build.failures = 0 if old is None else old.failures
                served.builds[mode] = build
        return True

    def _new_build(self, served: ServedModel, mode: str, forced: bool) -> Build:
        return Build(
            mode=mode,
            state=BuildState.BUILDING,
            stage=Stage.QUEUED,
            backend=self._workshop.backend(mode).name,
            build_id=f"{served.model_id}/{mode}/{next(self._ids)}",
            forced=forced,
            changed_s=self._clock.monotonic_s(),
        )

    def _obstacle(self, served: ServedModel) -> tuple[str, str] | None:
        taken = self._serving_gpus()
        return obstacle(served, self.config, self._workshop, closed=self._closed, serving_gpus=taken)

    def _restore(self, served: ServedModel, stop: threading.Event) -> None:
        """Every build of an earlier process that is kept serves again."""
        for mode in self._workshop.modes:
            request = self._attempt.request(served, mode, self.config, stop)
            if self._workshop.keeps_build(request) and not stop.is_set():
                served.pending[mode] = build = self._new_build(served, mode, forced=False)
                self._work(served, stop, build=build, kept_only=self._on_serving_gpu(served))

    def _work(
        self, served: ServedModel, stop: threading.Event, *, build: Build, kept_only: bool = False
    ) -> None:
        try:
            backend = self._workshop.backend(build.mode)
            attempt = self._attempt if not kept_only else self._opening
            self._settle(served, attempt(backend, served, build, self.config, stop, kept_only=kept_only))
        finally:
            served.pending.pop(build.mode, None)

    def _settle(self, served: ServedModel, build: Build) -> None:
        old = served.builds.get(build.mode)
        failed = build.state in (BuildState.FAILED, BuildState.DECLINED)
        build.failures = failed + (old.failures if old is not None and build.built is None else 0)
        if build.built is None and old is not None and old.built is not None:
            # A rebuild that failed does not take away what serves.
            old.failures, old.cause, old.remedy = build.failures, build.cause, build.remedy
            return
        if build.built is not None:
            form = self._workshop.backend(build.mode).forms[build.mode]
            build.watch = Watch(self._clock, form, repeatable=served.repeatable)
        served.builds[build.mode] = build
        self._activate(served)

    def _activate(self, served: ServedModel) -> None:
        ready = {
            (served.model_id, build.mode): build.step_s
            for build in list(served.builds.values())
            if build.state is BuildState.PROMOTED and build.built is not None and not build.stale
        }
        mode = served_mode(self._wanted_mode, served.model_id, ready)
        served.active = None if mode == ORIGINAL else served.builds[mode]
