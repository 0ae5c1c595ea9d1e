"""One build from start to verdict: make it, verify it, measure it, and say why it may not serve."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from loadwise.compiler.build import Build, BuildState, Stage
from loadwise.compiler.examples import signature
from loadwise.compiler.pace import Pace
from loadwise.compiler.parameters import ParameterKey
from loadwise.compiler.served import ServedModel, shown_sizes
from loadwise.compiler.timing import measure
from loadwise.compiler.verify import difference, distance, verify
from loadwise.errors import BuildDeclinedError, BuildError
from loadwise.ports import BuildBackend, BuildRequest, Built, Clock, Form, Verdict
from loadwise.settings import OptimizationConfig

TRY_AGAIN = "The original serves. force_recompile tries again."


class Attempt:
    """Makes builds; an attempt never raises. `share` says how much of the time a build may compute now.

    It is asked for a model, and may set the event that stops its build. `rest` lets seconds pass between what
    is computed here; by default until the build is stopped.
    """

    def __init__(
        self,
        clock: Clock,
        share: Callable[[ServedModel, threading.Event], float],
        rest: Callable[[float], object] | None = None,
    ) -> None:
        self._clock = clock
        self._share = share
        self._rest = rest

    def __call__(
        self,
        backend: BuildBackend,
        served: ServedModel,
        build: Build,
        config: OptimizationConfig,
        stop: threading.Event,
        *,
        kept_only: bool = False,
    ) -> Build:
        """`build` with its outcome, whatever happens: promoted, failed or declined with its reason.

        One that `stop` ended is as if it had not been tried. `kept_only`: it is opened, never made.
        """
        started_s = self._clock.monotonic_s()
        try:
            if not stop.is_set():
                request = self.request(served, build.mode, config, stop)
                progress = partial(setattr, build, "computed_s")
                asked = replace(request, fresh=build.forced, kept_only=kept_only, progress=progress)
                self._make(backend, served, build, asked)
        except BuildDeclinedError as error:
            build.state, build.cause, build.remedy = BuildState.DECLINED, str(error), error.remedy
            build.graph_breaks = [error.graph_break] if error.graph_break else []
        except BuildError as error:
            build.state, build.cause, build.remedy = BuildState.FAILED, str(error), error.remedy
        except Exception as error:  # noqa: BLE001 - a build may fail in any way; the original serves
            build.state, build.cause = BuildState.FAILED, f"{type(error).__name__}: {error}".split("\n")[0]
            build.remedy = TRY_AGAIN
        if stop.is_set() and build.built is None:
            build.state, build.cause = BuildState.ORIGINAL, "The build was stopped."
            build.remedy = "force_recompile starts it again."
        build.stage, build.changed_s = Stage.ENDED, self._clock.monotonic_s()
        if build.build_time_s is None:
            build.build_time_s = build.changed_s - started_s
        return build

    def request(
        self, served: ServedModel, mode: str, config: OptimizationConfig, stop: threading.Event
    ) -> BuildRequest:
        """What a backend is asked for."""
        return BuildRequest(
            model=served.original,
            model_id=served.model_id,
            mode=mode,
            examples=served.examples.all(),
            dynamic_shapes=served.dynamic_shapes,
            dynamic=mode not in ("reduce-overhead", "max-autotune"),
            digest=served.digest,
            recipe=served.recipe,
            timeout_s=config.build_timeout_sec,
            memory_bytes=config.build_memory_bytes,
            share=partial(self._share, served, stop),
            stop=stop,
        )

    def _make(self, backend: BuildBackend, served: ServedModel, build: Build, request: BuildRequest) -> None:
        key = ParameterKey(served.original)
        built = self._judged(backend, served, build, request)
        if built.kept and build.state is BuildState.FAILED and not request.kept_only:
            # What was kept is forgotten by now, so this makes it anew.
            built = self._judged(backend, served, build, request)
        if build.state is BuildState.FAILED:
            raise BuildError(build.cause, remedy=build.remedy)
        if not key.holds():
            built.settle(Verdict.WRONG)
            raise BuildError("The model changed during its build.", remedy="force_recompile builds it anew.")
        built.settle(Verdict.PROMOTED)
        build.built, build.key = built, key
        build.state = BuildState.VARIANT if backend.forms[build.mode].quantised else BuildState.PROMOTED

    def _judged(
        self, backend: BuildBackend, served: ServedModel, build: Build, request: BuildRequest
    ) -> Built:
        """A build that was verified and measured; one that is wrong leaves `build` failed."""
        started_s = self._clock.monotonic_s()
        build.stage, build.state = Stage.MAKING, BuildState.BUILDING
        built = backend.build(request)
        build.build_time_s, build.kept = self._clock.monotonic_s() - started_s, built.kept
        try:
            self._judge(backend, served, build, built, request)
        except BuildDeclinedError:
            built.settle(Verdict.SLOWER)
            raise
        except BuildError as error:
            built.settle(Verdict.WRONG)
            build.state, build.cause, build.remedy = BuildState.FAILED, str(error), error.remedy
        except BaseException:
            built.settle(Verdict.WRONG)
            raise
        return built

    def _judge(
        self, backend: BuildBackend, served: ServedModel, build: Build, built: Built, request: BuildRequest
    ) -> None:
        import torch

        taken = [(args, kwargs) for args, kwargs in request.examples if built.accepts(args, kwargs)]
        if not taken:
            raise BuildError("The build takes none of the calls seen.", remedy="Call force_recompile.")
        form, pace = backend.forms[build.mode], Pace(self._clock, request.share, request.stop, self._rest)
        with torch.no_grad():
            build.stage = Stage.VERIFYING
            verify(served.original, built.call, taken, form=form, paced=pace)
            self._warm_up(served, built, form, pace)
            self._ask_judge(served, build, built, form, pace)
            if form.quantised:
                build.quality_loss = distance(pace(served.original), pace(built.call), taken)
            build.stage = Stage.MEASURING
            timing = measure(served.original, built.call, taken[0], self._clock, pace.rest_after)
            build.timing = timing
        if not timing.faster and not form.quantised:
            # Nothing went wrong: nobody need be told.
            raise BuildDeclinedError(
                f"The build is not faster ({timing.compiled_s * 1000:.3g} ms against "
                f"{timing.original_s * 1000:.3g} ms).",
                remedy="The original serves. Another compile_mode may do better.",
            )

    @staticmethod
    def _warm_up(served: ServedModel, built: Built, form: Form, pace: Pace) -> None:
        """Calls of every size that will be served were answered once, as the original answers them."""
        original, candidate, compare = pace(served.original), pace(built.call), pace(difference)
        for args in served.buckets():
            if not built.accepts(args, {}):
                continue
            # First: after the original, it would find there what it has to write itself.
            actual = candidate(*args)
            found = compare(original(*args), actual, form=form)
            if found is not None:
                raise BuildError(
                    f"The build is wrong for a call of sizes {shown_sizes(signature(args))} ({found}).",
                    remedy="The original serves. Try another compile_mode, or report the model.",
                )

    @staticmethod
    def _ask_judge(served: ServedModel, build: Build, built: Built, form: Form, pace: Pace) -> None:
        if served.judge is None:
            return
        build.judged = served.judge(built.call, form.precision, pace)
        wrong = build.judged["wrong"]
        if wrong is not None and not form.quantised:
            raise BuildError(
                f"The build does not answer as the model does: {wrong}.",
                remedy="The original serves. Try another compile_mode.",
            )
